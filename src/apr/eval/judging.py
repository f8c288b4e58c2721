"""Programs into verdicts, while other work goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from apr.eval.sandbox import Job, Outcome, Sandbox


class Judging:
    """A thread that feeds the sandbox; verdicts are fetched without waiting.

    with Judging(sandbox) as judging:
        judging.submit(job)
        for outcome in judging.ready(): ...
        for outcome in judging.rest(): ...     # no more jobs; waits for all verdicts
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self._sandbox = sandbox
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Judging:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._jobs.put(None)

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def ready(self) -> Iterator[Outcome]:
        """The verdicts that have come in since the last call."""
        while not self._outcomes.empty():
            item = self._outcomes.get()
            if item is not None:
                yield self._checked(item)

    def rest(self) -> Iterator[Outcome]:
        """All verdicts still to come, as they come."""
        self._jobs.put(None)
        while (item := self._outcomes.get()) is not None:
            yield self._checked(item)

    def _checked(self, item: Outcome | BaseException) -> Outcome:
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        try:
            for outcome in self._sandbox.run_many(iter(self._jobs.get, None)):
                self._outcomes.put(outcome)
        except BaseException as error:
            self._outcomes.put(error)
        finally:
            self._outcomes.put(None)
