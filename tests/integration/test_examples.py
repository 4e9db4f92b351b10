"""The examples of the embedding guide run, and answer what the processor answers by hand."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.pipeline import Preprocess
from tests.models import residual, same, state_of

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"\.\./examples/(\w+\.py)", GUIDE)
SYSTEM_PYTHON = "/usr/bin/python3"
APPSINK = ROOT / "examples" / "gstreamer_appsink.py"
PREPARE = Preprocess.parse("normalize=half")
RATE = 10


def example(name: str) -> types.ModuleType:
    """One of the files, imported from its path."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures(count: int = 20, *, seed: int = 0, dark: float = 1.0) -> np.ndarray:
    """Coloured blocks, RGB `[count, 48, 64, 3]`."""
    rng = np.random.default_rng([3, seed])
    coarse = rng.integers(0, 256, (count, 6, 8, 3))
    return (np.kron(coarse, np.ones((1, 8, 8, 1))) * dark).astype(np.uint8)


def filmed(path: Path, given: np.ndarray) -> Path:
    """A video that loses nothing: it is decoded to the bit."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=RATE)
        stream.height, stream.width = given.shape[1:3]
        stream.pix_fmt = "rgb24"
        for picture in given:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def tensor(picture: np.ndarray) -> Tensor:
    """`[1, 3, H, W]` from -1 to 1."""
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1).unsqueeze(0)


def frozen(given: np.ndarray) -> Tensor:
    """What the model answers that nobody wrapped."""
    with torch.inference_mode():
        return torch.cat([residual()(tensor(one)) for one in given])


def by_hand(given: np.ndarray, *, rate: float = RATE) -> Tensor:
    """What a processor answers that is called on the pictures themselves."""
    with sa.StreamProcessor(residual()) as processor, torch.inference_mode():
        return torch.cat(
            [processor(tensor(one), pts_seconds=k / rate) for k, one in enumerate(given)]
        )


def require_adapted(outputs: Tensor, given: np.ndarray, *, rate: float = RATE) -> None:
    """They begin as the frozen model's, become others, and are those of the steps by hand."""
    source = frozen(given)
    assert outputs.shape == source.shape
    torch.testing.assert_close(outputs[0], source[0])
    assert (outputs[-1] - source[-1]).abs().max() > 0.1
    torch.testing.assert_close(outputs, by_hand(given, rate=rate))


def moving(outputs: Iterator[Tensor], model: nn.Module) -> Tensor:
    """All outputs; the model's statistics move meanwhile, and are the source's again at the end."""
    source = state_of(model)
    found = []
    for output in outputs:
        found.append(output.clone())
        last = state_of(model)
    for name in ("bn1", "bn2", "bn3"):
        assert not torch.equal(last[f"{name}.running_mean"], source[f"{name}.running_mean"])
    assert same(state_of(model), source)
    return torch.cat(found)


def test_the_guide_leads_to_every_example_that_is_run_here() -> None:
    loaded = re.findall(r'example\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert set(EXAMPLES) == {f"{name}.py" for name in loaded} | {APPSINK.name}


def test_what_the_guide_shows_is_python() -> None:
    shown = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(shown) > 7
    for snippet in shown:
        ast.parse(snippet)


# Loops over a video ------------------------------------------------------------------------------


def test_an_opencv_loop(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    given, model = pictures(), residual()
    capture = cv2.VideoCapture(str(filmed(tmp_path / "dock.avi", given)))
    outputs = moving(example("opencv_loop").answers(capture, model, PREPARE), model)
    require_adapted(outputs, given)


def test_an_opencv_loop_that_is_left_early_gives_the_model_back(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    model = residual()
    source = state_of(model)
    capture = cv2.VideoCapture(str(filmed(tmp_path / "dock.avi", pictures())))
    outputs = example("opencv_loop").answers(capture, model, PREPARE)
    for _ in range(8):
        next(outputs)
        assert not torch.is_inference_mode_enabled()  # the loop around it is somebody else's
    assert not same(state_of(model), source)
    outputs.close()
    assert same(state_of(model), source)


@pytest.mark.parametrize("kind", ["capture", "function"])
def test_an_opencv_capture_read_ahead(tmp_path: Path, kind: str) -> None:
    cv2 = pytest.importorskip("cv2")
    given, model = pictures(), residual()
    path = str(filmed(tmp_path / "dock.avi", given))
    source = cv2.VideoCapture(path) if kind == "capture" else lambda: cv2.VideoCapture(path)
    outputs = example("opencv_loop").answers_ahead(source, model, PREPARE, live=False)
    require_adapted(moving(outputs, model), given)


def test_a_function_that_makes_captures_is_a_camera_that_comes_back(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    given, made = pictures(4), []
    path = str(filmed(tmp_path / "dock.avi", given))

    def make() -> Any:
        made.append(cv2.VideoCapture(path))
        return made[-1]

    quick = sa.frames.Backoff(0.001, 0.002)
    outputs = example("opencv_loop").answers_ahead(make, residual(), PREPARE, backoff=quick)
    first = next(outputs)[0]
    assert any(torch.allclose(first, one) for one in frozen(given))
    while len(made) < 3:
        next(outputs)
    outputs.close()


def test_a_pyav_loop(tmp_path: Path) -> None:
    given, model = pictures(), residual()
    path = filmed(tmp_path / "dock.avi", given)
    outputs = moving(example("pyav_loop").answers(str(path), model, PREPARE), model)
    require_adapted(outputs, given)


@pytest.mark.parametrize("name", ["opencv_loop", "pyav_loop"])
def test_loops_run_from_the_command_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2" if name == "opencv_loop" else "av")
    zoo = types.ModuleType("torchvision.models")
    zoo.resnet18 = lambda weights: residual()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", zoo)
    path = filmed(tmp_path / "dock.avi", pictures(3))
    monkeypatch.setattr(sys, "argv", [name, str(path)])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert [0 <= int(line) < 5 for line in capsys.readouterr().out.split()] == [True] * 3


# GStreamer ---------------------------------------------------------------------------------------

_PROBE = """
import sys
print(*sys.version_info[:2])
import gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
elements = "filesrc", "decodebin", "avidemux", "pngdec", "videoconvert", "appsink"
print(*(name for name in elements if Gst.ElementFactory.find(name) is None))
"""
_RUN = """
import json, runpy, sys
import torch
from streamadapt.pipeline import Preprocess
from tests.models import residual, same, state_of

torch.set_num_threads(1)
example = runpy.run_path(sys.argv[1])
model, outputs, moved = residual(), [], []
source = state_of(model)
for output in example["answers"](sys.argv[2], model, Preprocess.parse("normalize=half")):
    outputs.append(output[0].tolist())
    moved.append(not same(state_of(model), source))
print(json.dumps({"outputs": outputs, "moved": moved, "given_back": same(state_of(model), source)}))
"""


@pytest.fixture(scope="module")
def gstreamer() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code with the system's Python, which sees this one's packages."""
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"there is no {SYSTEM_PYTHON}")
    found = subprocess.run([SYSTEM_PYTHON, "-c", _PROBE], capture_output=True, text=True)
    version, *missing = found.stdout.splitlines()
    if version.split() != [str(part) for part in sys.version_info[:2]]:
        pytest.skip(f"{SYSTEM_PYTHON} is {version}: it cannot import what is installed here")
    if found.returncode != 0 or missing[0]:
        pytest.skip(
            f"no GStreamer ({missing[0] if missing else 'PyGObject'} is missing): apt-get install "
            "python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good"
        )
    paths = [str(ROOT), *(str(Path(module.__file__).parents[1]) for module in (torch, np))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                SYSTEM_PYTHON,
                "-c",
                _RUN,
                str(ROOT / "examples" / "gstreamer_appsink.py"),
                *arguments,
            ],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.mark.rtsp
def test_a_gstreamer_appsink(
    tmp_path: Path, gstreamer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    given = pictures()
    path = filmed(tmp_path / "dock.avi", given)
    ran = gstreamer(f'filesrc location="{path}" ! decodebin')
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    require_adapted(torch.tensor(found["outputs"]), given)
    assert found["moved"][-1] and found["given_back"]


@pytest.mark.rtsp
def test_a_gstreamer_pipeline_that_does_not_play_is_an_error(
    tmp_path: Path, gstreamer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ran = gstreamer(f'filesrc location="{tmp_path / "nowhere.avi"}" ! decodebin')
    assert ran.returncode == 1
    assert "RuntimeError" in ran.stderr and "nowhere.avi" in ran.stderr.splitlines()[-1]


# An HTTP server ----------------------------------------------------------------------------------


def encoded(picture: np.ndarray, form: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form)
    return buffer.getvalue()


def served(use: Callable[[Any, Any], Any], model: nn.Module, **options: Any) -> Any:
    """Runs `use(client, processor)` between an app's startup and its shutdown."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("fastapi")
    pytest.importorskip("PIL")
    app = example("fastapi_endpoint").make_app(model, PREPARE, **options)

    async def main() -> Any:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await use(client, app.state.processor)
        return app.state.processor

    return asyncio.run(main())


def first_layer(model: nn.Module, given: np.ndarray, momentum: float) -> tuple[Tensor, Tensor]:
    """Moments of the first BatchNorm after the frames, by the formula, in float64."""
    model = model.double()
    mean, var = model.bn1.running_mean.clone(), model.bn1.running_var.clone()
    for picture in given:
        with torch.inference_mode():
            seen = model.conv1(tensor(picture).double()).transpose(0, 1).flatten(1)
        apart = seen.mean(1) - mean
        mean = mean + momentum * apart
        var = (1 - momentum) * var + momentum * seen.var(1, correction=0)
        var = var + momentum * (1 - momentum) * apart**2
    return mean, var


def test_cameras_of_an_endpoint_have_statistics_of_their_own() -> None:
    cameras = {"dock-1": pictures(8, seed=1), "dock-2": pictures(8, seed=2, dark=0.3)}
    model = residual()
    source, status = state_of(model), []

    async def use(client: Any, processor: sa.StreamProcessor) -> None:
        for frames in zip(*cameras.values(), strict=True):
            posts = [
                client.post("/answer", params={"camera": name}, content=encoded(picture, "PNG"))
                for name, picture in zip(cameras, frames, strict=True)
            ]
            for name, reply in zip(cameras, await asyncio.gather(*posts), strict=True):
                assert reply.status_code == 200 and reply.json()["camera"] == name
                assert len(reply.json()["scores"]) == 5
        status.append((await client.get("/status")).json())
        for name, given in cameras.items():
            mean, var = first_layer(residual(), given, 0.2)
            found = processor.statistics(name)["bn1"]
            torch.testing.assert_close(found.mean, mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.var, var, rtol=1e-4, atol=1e-5)

    processor = served(use, model, estimator=sa.estimators.EMA(0.2))
    assert status[0]["healthy"] and status[0]["steps"] == 16
    assert status[0]["cameras"] == ["dock-1", "dock-2"]
    assert processor.closed and same(state_of(model), source)


def test_an_endpoint_answers_as_the_model_does_at_first() -> None:
    given = pictures(1)

    async def use(client: Any, processor: sa.StreamProcessor) -> None:
        for form, tolerance in (("PNG", 1e-5), ("JPEG", 0.2)):
            body = encoded(given[0], form)
            reply = await client.post("/answer", params={"camera": form}, content=body)
            wanted = frozen(given)[0]
            torch.testing.assert_close(
                torch.tensor(reply.json()["scores"]), wanted, rtol=0.0, atol=tolerance
            )

    served(use, residual())


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "gif"])
def test_a_bad_picture_is_refused_and_no_camera_begins(kind: str) -> None:
    whole = encoded(pictures(1)[0], "JPEG")
    bodies = {
        "empty": b"",
        "text": b"no picture",
        "truncated": whole[: len(whole) // 2],
        "gif": encoded(pictures(1)[0], "GIF"),
    }

    async def use(client: Any, processor: sa.StreamProcessor) -> None:
        reply = await client.post("/answer", params={"camera": "a"}, content=bodies[kind])
        assert reply.status_code == 400 and "JPEG or PNG" in reply.json()["detail"]
        assert (await client.post("/answer", content=whole)).status_code == 422  # whose?
        assert processor.streams == () and processor.status.steps == 0

    served(use, residual())


# Roboflow ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoFrame:
    """As Roboflow's."""

    image: np.ndarray
    frame_id: int
    frame_timestamp: datetime
    fps: float | None = None
    measured_fps: float | None = None
    source_id: int | None = None
    comes_from_video_file: bool | None = None


def grabbed(given: np.ndarray, source: int, *, file: bool) -> list[VideoFrame]:
    """Frames of a source: a file is read as fast as can be."""
    start = datetime(2026, 3, 1, 12)
    passed = 0.001 if file else 1 / RATE
    return [
        VideoFrame(
            image=picture[:, :, ::-1],
            frame_id=index + 1,
            frame_timestamp=start + timedelta(seconds=index * passed),
            fps=RATE,
            source_id=source,
            comes_from_video_file=file,
        )
        for index, picture in enumerate(given)
    ]


def test_sources_of_a_roboflow_pipeline_are_streams() -> None:
    """One of them misses a batch now and then."""
    given = pictures(18, seed=1), pictures(12, seed=2, dark=0.85)
    camera, file = grabbed(given[0], 0, file=False), grabbed(given[1], 1, file=True)
    taken = iter(file)
    batches = [[one] if index % 3 == 2 else [one, next(taken)] for index, one in enumerate(camera)]
    found: dict[str, list[Tensor]] = {"source-0": [], "source-1": []}
    written: list[dict[str, Any]] = []
    model = residual()
    with sa.StreamProcessor(model, max_streams=2) as processor:
        adapted = example("roboflow_sink").Adapted(processor, PREPARE, written.append)
        for batch in batches:
            predictions = adapted.infer(batch)
            aligned = [*zip(predictions, batch, strict=True), (None, None)][:2]
            adapted.on_prediction(*(list(one) for one in zip(*aligned, strict=True)))
            for prediction, frame in zip(predictions, batch, strict=True):
                found[f"source-{frame.source_id}"].append(torch.tensor(prediction["scores"]))
        assert set(processor.streams) == set(found)
    for name, pictures_of_it in zip(found, given, strict=True):
        require_adapted(torch.stack(found[name]), pictures_of_it)
    assert [(one["stream"], one["frame"]) for one in written] == [
        (f"source-{frame.source_id}", frame.frame_id) for batch in batches for frame in batch
    ]


def test_a_roboflow_sink_of_one_source_gets_no_lists() -> None:
    frame = grabbed(pictures(1), 0, file=False)[0]
    written: list[dict[str, Any]] = []
    with sa.StreamProcessor(residual()) as processor:
        adapted = example("roboflow_sink").Adapted(processor, PREPARE, written.append)
        adapted.on_prediction(adapted.infer([frame])[0], frame)
    wanted = int(frozen(pictures(1)).argmax())
    assert [(one["stream"], one["class_id"]) for one in written] == [("source-0", wanted)]


@pytest.mark.filterwarnings("ignore")  # of imports that are not ours
def test_a_roboflow_pipeline(tmp_path: Path) -> None:
    inference = pytest.importorskip("inference")
    given, model = pictures(), residual()
    written: list[dict[str, Any]] = []
    with sa.StreamProcessor(model) as processor:
        adapted = example("roboflow_sink").Adapted(processor, PREPARE, written.append)
        pipeline = inference.InferencePipeline.init_with_custom_logic(
            video_reference=str(filmed(tmp_path / "dock.avi", given)),
            on_video_frame=adapted.infer,
            on_prediction=adapted.on_prediction,
        )
        pipeline.start()
        pipeline.join()
    require_adapted(torch.tensor([one["scores"] for one in written]), given)


# Ultralytics -------------------------------------------------------------------------------------


class StandInBackend(nn.Module):
    """As AutoBackend: a detector inside, which is fused unless somebody says no."""

    def __init__(
        self, model: nn.Module, device: torch.device, fuse: bool = True, verbose: bool = True
    ) -> None:
        super().__init__()
        self.device, self.model = device, nn.Identity() if fuse else model.to(device)


class StandInPredictor:
    """As DetectionPredictor: batches of paths, pictures and texts."""

    def __init__(self, *, live: bool) -> None:
        self.args = types.SimpleNamespace(device="cpu", model=None)
        self.source_type = types.SimpleNamespace(stream=live)

    def __call__(self, batches: list[tuple[list[str], Tensor]]) -> Iterator[Any]:
        for paths, frames in batches:
            self.batch = paths, frames, [""] * len(paths)
            yield from self.inference(frames)  # type: ignore[attr-defined]


class StandInYolo:
    """As YOLO, for what the example calls."""

    def __init__(self, weights: nn.Module) -> None:
        self.model = weights

    def predict(self, source: Any, stream: bool, predictor: Any, live: bool) -> Iterator[Any]:
        assert stream
        self.predictor = predictor(live=live)
        self.predictor.setup_model(model=self.model, verbose=False)
        return self.predictor(source)


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The example on stand-ins for what it imports."""
    offered: dict[str, dict[str, Any]] = {
        "ultralytics": {"YOLO": StandInYolo},
        "ultralytics.models": {},
        "ultralytics.models.yolo": {},
        "ultralytics.models.yolo.detect": {"DetectionPredictor": StandInPredictor},
        "ultralytics.nn": {},
        "ultralytics.nn.autobackend": {"AutoBackend": StandInBackend},
        "ultralytics.utils": {},
        "ultralytics.utils.torch_utils": {
            "select_device": lambda device, verbose: torch.device(device)
        },
    }
    for name, values in offered.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return example("ultralytics_predictor")


def test_an_ultralytics_detector_is_adapted_to_its_video(predictor: types.ModuleType) -> None:
    """Its camera time is the clock's, so that only the first answer is known beforehand."""
    given, model = pictures(), residual()
    source, before = [(["/videos/dock.mp4"], tensor(one)) for one in given], state_of(model)
    outputs, wanted = list(predictor.answers(model, source, live=False)), frozen(given)
    torch.testing.assert_close(outputs[0], wanted[0])
    assert (outputs[-1] - wanted[-1]).abs().max() > 0.1
    assert same(state_of(model), before)


def test_ultralytics_streams_are_called_by_files_and_not_by_urls(
    predictor: types.ModuleType,
) -> None:
    paths = [f"rtsp://viewer:secret@10.0.0.{k}/live" for k in (7, 8)]
    one = predictor.AdaptedPredictor(live=True)
    one.setup_model(residual(), verbose=False)
    with one.processor:
        both = torch.cat([tensor(picture) for picture in pictures(2)])
        assert len(list(one([(paths, both)]))) == 2
        assert set(one.processor.streams) == {"camera-0", "camera-1"}
        one.source_type.stream = False
        list(one([(["/videos/dock.mp4"], both[:1])]))
        assert set(one.processor.streams) == {"camera-0", "camera-1", "dock"}


@pytest.mark.filterwarnings("ignore")  # of imports that are not ours
def test_an_ultralytics_predictor() -> None:
    ultralytics = pytest.importorskip("ultralytics")
    module = example("ultralytics_predictor")
    yolo = ultralytics.YOLO("yolo11n.yaml")
    frames = [one[:, :, ::-1].copy() for one in pictures(6)]
    results = yolo.predict(
        frames, stream=True, predictor=module.AdaptedPredictor, imgsz=64, verbose=False
    )
    with yolo.predictor.processor as processor:
        assert len(list(results)) == 6
        assert processor.status.healthy and processor.status.steps > 0
