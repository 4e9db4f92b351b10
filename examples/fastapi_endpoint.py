"""An HTTP endpoint whose cameras have statistics of their own.

With `app = make_app(model, prepare)` in shop.py: `uvicorn shop:app`, and
`curl --data-binary @frame.jpg 'localhost:8000/answer?camera=dock-1'`.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from torch import Tensor, nn

import streamadapt as sa


def make_app(model: nn.Module, prepare: Callable[[Any], Tensor], **options: Any) -> FastAPI:
    """An app that answers pictures; `options` are the processor's."""
    options = {"max_streams": 64, "when_full": "evict"} | options

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with sa.StreamProcessor(model, **options) as app.state.processor:
            yield  # afterwards the model is as it was, and with a `store` all cameras are saved

    app = FastAPI(lifespan=lifespan)

    def step(body: bytes, camera: str) -> list[float]:
        try:
            picture = Image.open(io.BytesIO(body), formats=("JPEG", "PNG")).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise HTTPException(400, "The body is no JPEG or PNG picture.") from error
        with torch.inference_mode():
            output = app.state.processor(prepare(np.array(picture)).unsqueeze(0), streams=camera)
        return output[0].tolist()

    @app.post("/answer")
    async def answer(request: Request, camera: str) -> dict[str, Any]:
        scores = await run_in_threadpool(step, await request.body(), camera)
        return {"camera": camera, "scores": scores}

    @app.get("/status")
    def status() -> dict[str, Any]:
        processor = app.state.processor
        return asdict(processor.status) | {"cameras": sorted(processor.streams)}

    return app
