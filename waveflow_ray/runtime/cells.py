"""The cells of a mix as Ray tasks, their windows gathered as they come."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from waveflow_ray.errors import ErrorCode, JobError, internal_error
from waveflow_ray.jobs.mix import Cell, Render, Window, cell_windows, resumed
from waveflow_ray.jobs.work import TimeUp, Work, time_limit
from waveflow_ray.runtime.placement import CELL, LOST_WORKER, TRIES
from waveflow_ray.settings import Settings

logger = logging.getLogger(__name__)


def do_cell(cell: Cell, settings: Settings) -> Iterator[Window | JobError]:
    """A cell of a mix, in a worker process. A JobError comes as the last item."""
    try:
        with time_limit(settings.job_timeout_s, hard=True):
            yield from cell_windows(cell, Work(settings))
    except JobError as error:
        yield error
    except TimeUp:
        yield JobError(ErrorCode.TIMEOUT, "A stem took too long to decode.", str(cell.keys))


cell_task: Any = ray.remote(**CELL)(do_cell)


@dataclass
class Running:
    """A cell that a task is at work on: windows received so far, tasks started for it."""

    cell: Cell
    windows: int = 0
    starts: int = 1


def render_on_ray(settings: Settings) -> Render:
    """Runs a mix's cells as Ray tasks; windows come as they are ready, from any cell."""

    def render(cells: Sequence[Cell]) -> Iterator[tuple[int, Window]]:
        settings_ref = ray.put(settings)

        def start(cell: Cell) -> Any:
            name = f"mix cell of {len(cell.keys)} stems"
            return cell_task.options(name=name).remote(cell, settings_ref)

        live: dict[Any, Running] = {start(cell): Running(cell) for cell in cells}
        try:
            while live:
                ready: list[Any] = ray.wait(list(live), num_returns=1, fetch_local=False)[0]
                running = live.pop(ready[0])
                try:
                    item = ray.get(next(ready[0]))
                except StopIteration:
                    continue
                except ray.exceptions.RayError as error:
                    if running.starts >= TRIES:
                        raise _cell_lost(running.cell, error) from error
                    logger.warning("a mix cell is started again at window %d", running.windows)
                    running.starts += 1
                    live[start(resumed(running.cell, running.windows))] = running
                    continue
                live[ready[0]] = running
                if isinstance(item, JobError):
                    raise item
                running.windows += 1
                yield running.windows - 1, item
        finally:
            for generator in live:
                ray.cancel(generator, force=True)

    return render


def _cell_lost(cell: Cell, error: Exception) -> JobError:
    names = ", ".join(key.rsplit("/", 1)[-1] for key in cell.keys)
    if isinstance(error, LOST_WORKER):
        return JobError(
            ErrorCode.WORKER_CRASHED,
            f"One of these stems stopped the program that reads it: {names}.",
            str(error)[:500],
        )
    return internal_error(f"{names}: {type(error).__name__}: {str(error)[:500]}")
