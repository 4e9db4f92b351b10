"""Changes of a processor's state: snapshots, rollback, freezing, domains, settings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from streamadapt import events as ev
from streamadapt.arguments import check_choice, check_types
from streamadapt.errors import ConfigurationError, StreamError
from streamadapt.estimators import Estimator
from streamadapt.readings import Readings
from streamadapt.runtime import Mode
from streamadapt.snapshots import SOURCE, Snapshot


class Controls(Readings):
    """What can be done to a processor between its steps; waits for the step under way."""

    def snapshot(self, name: str | None = None, *, stream: Hashable | None = None) -> str:
        """Copy the committed state of a stream, or of all of them, under a name.

        Args:
            name: what to call it; made from the step number when None. A name in use is replaced.
            stream: only this one.

        Returns:
            The name.

        Raises:
            ConfigurationError: the name "source", which is taken.
            StreamError: unknown stream.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.prepare()
            if name == SOURCE:
                raise ConfigurationError(
                    f'"{SOURCE}" is the state that every stream starts from. Choose another name.'
                )
            streams = runtime.chosen(stream)
            name = runtime.snapshots.free_name(runtime.steps) if name is None else name
            with runtime.state_lock:
                state = runtime.engine.bank.capture(runtime.rows(streams))
            dropped = runtime.snapshots.add(Snapshot(name, runtime.steps, streams, state))
            runtime.outbox.post(ev.SnapshotTaken(step=runtime.steps, name=name, streams=streams))
            if dropped is not None:
                runtime.outbox.post(
                    ev.SnapshotDropped(step=runtime.steps, name=dropped, reason="capacity")
                )
            runtime.outbox.deliver()
            return name

    def rollback(
        self, to: str | None = None, *, stream: Hashable | None = None, reason: str = "manual"
    ) -> None:
        """Put streams back on an earlier state.

        Args:
            to: a snapshot's name, the latest when None, or "source".
            stream: only this one; otherwise every stream that has a row now and stands in the
                snapshot.
            reason: shown in the event and in the counter.

        Raises:
            SnapshotError: no such snapshot, or it does not hold the stream.
            StreamError: unknown stream.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.prepare()
            if to == SOURCE:
                name, streams = SOURCE, runtime.chosen(stream)
                with runtime.state_lock:
                    runtime.engine.reset(runtime.rows(streams))
            else:
                saved = runtime.snapshots.get(to)
                name, streams = saved.name, saved.streams
                if stream is None:
                    streams = tuple(s for s in streams if s in runtime.streams.streams)
                else:
                    streams = (runtime.streams.resolve(stream),)
                state = saved.select(streams)
                with runtime.state_lock:
                    runtime.engine.restore(runtime.rows(streams), state)
            if runtime.keeping is not None:
                runtime.keeping.moved(streams)
            runtime.guard.released(runtime.rows(streams))
            runtime.worlds.forget(runtime.rows(streams))
            runtime.post(ev.RolledBack(step=runtime.steps, to=name, streams=streams, reason=reason))

    def reveal(self, ids: Sequence[Hashable], labels: Sequence[int]) -> int:
        """Tell the guard which classes were right, for frames that went in with `ids`.

        Such frames are answered on the source's statistics too, when they go through. Eight labels
        of a stream outrank whatever the guard estimates without them. The latest 4096 frames with
        an id are remembered.

        Args:
            ids: of frames.
            labels: the right class of each.

        Returns:
            How many of them were still known.

        Raises:
            ConfigurationError: there is no guard, or not as many labels as ids.
        """
        runtime = self._runtime
        if len(ids) != len(labels):
            raise ConfigurationError(
                f"`reveal` needs a label for each id, got {len(ids)} ids and {len(labels)} labels."
            )
        with runtime.step_lock.change():
            runtime.require_open()
            with runtime.state_lock:
                known = runtime.guard.reveal(runtime.steps, ids, [int(one) for one in labels])
            runtime.outbox.deliver()
            return known

    def remember(self, name: str, *, stream: Hashable | None = None) -> None:
        """Keep a stream's present domain under a name, to be recognised when it comes back.

        Domains that are not named are learned when the stream leaves them.

        Raises:
            ConfigurationError: the processor remembers no domains.
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.prepare()
            with runtime.state_lock:
                row, shown = runtime.row(stream), runtime.streams.resolve(stream)
                runtime.domains.remember(runtime.steps, shown, row, name)
            runtime.outbox.deliver()

    def begin_like(self, stream: Hashable, *, like: Hashable, domain: str | None = None) -> None:
        """Have a stream begin with another one's statistics, when it comes and has none of its own.

        Cameras that look at the same place, or a new camera in the place of an old one, need not
        learn what is known. It has its own statistics where the store kept some.

        Args:
            stream: a stream that has no row yet.
            like: another one, whose present statistics are copied when `stream` comes: from its
                row, or from the store.
            domain: rather what it had in this world, one of its `domains`.

        Raises:
            StreamError: `stream` has a row, or is `like` itself.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.prepare()
            if stream in runtime.streams.streams:
                raise StreamError(
                    f"{stream!r} has begun already. Drop it first: drop_stream({stream!r})."
                )
            if stream == like:
                raise StreamError(f"{stream!r} cannot begin like itself.")
            runtime.beginnings[stream] = like, domain

    def retune(self, estimator: Estimator) -> None:
        """Go on with other settings of the same estimator, such as another momentum.

        What is known of the streams stays. Captured steps obey where kernels commit in lagged
        timing, as they do on a GPU; otherwise they are dropped (`CapturesDropped`).

        Raises:
            ConfigurationError: another estimator, or settings that need other state.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.prepare()
            check_types(runtime.model, estimator)
            if runtime.profile is not None:
                estimator = estimator.calibrated(runtime.profile)
            with runtime.state_lock:
                obeys = runtime.engine.retune(estimator)
            captures = 0 if obeys else runtime.captures.clear()
            runtime.outbox.post(ev.EstimatorRetuned(step=runtime.steps, estimator=repr(estimator)))
            if captures:
                runtime.outbox.post(ev.CapturesDropped(step=runtime.steps, captures=captures))
            runtime.outbox.deliver()

    def freeze(self) -> None:
        """Stop updating; outputs go on with the statistics as they are.

        Single frames are corrected as before, see `estimators.FrameCorrection`.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.frozen = True
            if runtime.between is not None:
                runtime.between.forget()
            runtime.post(ev.AdaptationFrozen(step=runtime.steps))

    def resume(self) -> None:
        """Go on updating after `freeze`."""
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.frozen = False
            runtime.post(ev.AdaptationResumed(step=runtime.steps))

    def drop_stream(self, stream: Hashable) -> None:
        """Forget a stream and free its row.

        Raises:
            StreamError: unknown stream.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.prepare()
            with runtime.state_lock:
                row = runtime.streams.remove(stream)
                runtime.engine.reset([row])
                runtime.forget(row)
                if runtime.keeping is not None:
                    runtime.keeping.forget(runtime.steps, stream, row)
            runtime.post(ev.StreamDropped(step=runtime.steps, stream=stream, evicted=False))

    @property
    def mode(self) -> Mode:
        """`adapt` or `shadow`; setting it puts every stream back on the source."""
        runtime = self._runtime
        return runtime.mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        runtime = self._runtime
        check_choice("mode", mode, ("adapt", "shadow"))
        with runtime.step_lock.change():
            runtime.prepare()
            if mode == runtime.mode:
                return
            runtime.keep_all()
            with runtime.state_lock:
                # Moments measured under source statistics are never installed in all layers.
                runtime.engine.reset(range(runtime.max_streams))
                runtime.mode = mode
                runtime.engine.set_bound(runtime.should_bind)
            runtime.post(ev.ModeChanged(step=runtime.steps, mode=mode))
