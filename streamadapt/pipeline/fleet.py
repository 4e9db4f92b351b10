"""Cameras and what is to be done with them, as a file says it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, urlsplit, urlunsplit

from streamadapt.errors import ConfigurationError
from streamadapt.frames.mailbox import Delivery, Policy
from streamadapt.frames.urls import kind_of

CameraMode = Literal["adapt", "shadow"]


@dataclass(frozen=True)
class Camera:
    """One camera of a fleet.

    Attributes:
        name: what it is called in results, metrics and stored states.
        url: what `sa.frames.open` opens; in a file without user and password.
        user: for the URL.
        secret_env: environment variable that holds the password.
        secret_file: file that holds it.
        mode: `adapt`, or `shadow`: answered by the source model, adapted beside it.
        profile: file of a `SourceProfile`; None: the fleet's.
        policy: as in `sa.frames.open`; None: as the source is.
        max_staleness: likewise, seconds.
        realtime: a file is read as if it was live.
        loop: a file begins anew at its end.
        open_seconds: within which it must answer.
        read_seconds: within which its next frame must come.
        like: a camera whose statistics it begins with, if it has none of its own.
    """

    name: str
    url: str = field(repr=False)
    user: str | None = None
    secret_env: str | None = None
    secret_file: str | None = None
    mode: CameraMode = "adapt"
    profile: str | None = None
    policy: Policy | None = None
    max_staleness: float | None = None
    realtime: bool = False
    loop: bool = False
    open_seconds: float = 10.0
    read_seconds: float = 10.0
    like: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(CameraMode):
            raise ConfigurationError(f'`mode` must be "adapt" or "shadow", got {self.mode!r}.')
        if "://" in self.url:
            kind_of(self.url)
        if self.secret_env is not None and self.secret_file is not None:
            raise ConfigurationError("Give `secret_env` or `secret_file`, not both.")
        if (self.secret_env or self.secret_file) and self.user is None:
            raise ConfigurationError("A secret needs the `user` that it belongs to.")
        Delivery(self.policy or "every", self.max_staleness)
        for name in ("open_seconds", "read_seconds"):
            if not getattr(self, name) > 0.0:
                raise ConfigurationError(f"`{name}` must be positive, got {getattr(self, name)}.")

    def address(self) -> str:
        """The URL with user and password in it.

        Raises:
            ConfigurationError: the password is not where it is said to be.
        """
        if self.user is None:
            return self.url
        parts = urlsplit(self.url)
        secret = self._secret()
        user = quote(self.user, safe="")
        told = user if secret is None else f"{user}:{quote(secret, safe='')}"
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{told}@{host}"))

    def _secret(self) -> str | None:
        if self.secret_env is not None:
            try:
                return os.environ[self.secret_env]
            except KeyError:
                raise ConfigurationError(
                    f"Camera {self.name!r}: there is no environment variable {self.secret_env}."
                ) from None
        if self.secret_file is not None:
            try:
                return Path(self.secret_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigurationError(
                    f"Camera {self.name!r}: {self.secret_file} cannot be read ({error.strerror})."
                ) from None
        return None


@dataclass(frozen=True)
class Fleet:
    """Cameras, the model that answers them, and where things are kept.

    Attributes:
        cameras: all of them.
        model: `package.module:factory`.
        preprocess: of frames: a table of `Preprocess`, its text, or `package.module:function`.
        profile: file of a `SourceProfile`, for cameras that name none.
        state_dir: folder that streams' statistics are kept in; None: nowhere.
        metrics_port: of Prometheus, on 127.0.0.1; each further group of cameras, by mode and
            profile, takes the next; None: none.
        kill_file: while it exists, every camera is on source statistics.
        max_streams: rows of statistics; None: some more than there are cameras.
        max_batch: frames of a batch at most.
        max_wait_seconds: that the first frame of a batch waits for others.
        guard: what hurts is taken back.
        warm_up_frames: after an outage that nothing is learned from.
        give_up_seconds: a camera that is away for so long has failed; None: it is tried for ever.
        first_contact_seconds: likewise, of one that was never there.
    """

    cameras: tuple[Camera, ...]
    model: str
    preprocess: str | Mapping[str, Any] = ""
    profile: str | None = None
    state_dir: str | None = None
    metrics_port: int | None = None
    kill_file: str | None = None
    max_streams: int | None = None
    max_batch: int = 8
    max_wait_seconds: float = 0.01
    guard: bool = True
    warm_up_frames: int = 8
    give_up_seconds: float | None = None
    first_contact_seconds: float | None = None
    base: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ConfigurationError("There is no camera. Add a [[camera]] with `name` and `url`.")
        names = [one.name for one in self.cameras]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"There are two cameras called {name!r}.")

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Fleet:
        """Read a file; paths in it start from its folder.

        Raises:
            ConfigurationError: it cannot be read, or something in it is wrong; says where.
        """
        file = Path(path)
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"{file}: cannot be read ({error.strerror}).") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{file}: {error}.") from None
        try:
            return cls._of(content, file.parent)
        except ConfigurationError as error:
            raise ConfigurationError(f"{file}: {error}") from None

    @classmethod
    def _of(cls, content: Mapping[str, Any], base: Path) -> Fleet:
        content = dict(content)
        listed = content.pop("camera", [])
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise ConfigurationError("Cameras are tables: [[camera]], with two brackets.")
        cameras = []
        for index, table in enumerate(listed):
            known = f"camera {table.get('name', index + 1)!r}"
            values = _checked(Camera, table, f"{known}: ")
            if (
                "://" in values["url"]
                and "@" in values["url"].partition("://")[2].partition("/")[0]
            ):
                raise ConfigurationError(
                    f"{known}: `url` has credentials in it. Give `user`, and name where the "
                    'password is kept, as in secret_env = "DOCK_1_PASSWORD".'
                )
            for key in ("profile", "secret_file"):
                _from(base, values, key)
            if "://" not in values.get("url", "") and not values.get("url", "").startswith("/dev/"):
                _from(base, values, "url")
            try:
                cameras.append(Camera(**values))
            except ConfigurationError as error:
                raise ConfigurationError(f"{known}: {error}") from None
        values = _checked(cls, content, "")
        for key in ("profile", "state_dir", "kill_file"):
            _from(base, values, key)
        return cls(cameras=tuple(cameras), base=base, **values)


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str,),
    "float": (float, int),
    "float | None": (float, int),
    "int": (int,),
    "int | None": (int,),
    "bool": (bool,),
    "CameraMode": (str,),
    "Policy | None": (str,),
    "str | Mapping[str, Any]": (str, dict),
}
_NOT_IN_A_FILE = ("cameras", "base")


def _checked(kind: Any, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A table's values, of the kinds that a class's fields have."""
    known = {one.name: one for one in fields(kind) if one.name not in _NOT_IN_A_FILE}
    for key, value in table.items():
        if key not in known:
            raise ConfigurationError(
                f"{where}unknown key `{key}`. Known: {', '.join(sorted(known))}."
            )
        kinds = _KINDS[str(known[key].type)]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigurationError(
                f"{where}`{key}` must be {' or '.join(one.__name__ for one in kinds)}, got "
                f"{value!r}."
            )
    needed = {Camera: ("name", "url"), Fleet: ("model",)}[kind]
    for key in needed:
        if key not in table:
            raise ConfigurationError(f"{where}`{key}` is missing.")
    return dict(table)


def _from(base: Path, values: dict[str, Any], key: str) -> None:
    if values.get(key) is not None:
        values[key] = str(base / values[key])
