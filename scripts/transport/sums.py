"""Sums over the transport plan, block by block, without storing anything of size N x M.

The plan between fibres x_i and y_j, each representing itself and its mirror image, is

    P_ij = a_i b_j / 2 * sum of exp((f_i + g_j - |x_i - y|^2 / 2) / eps) over y_j and its mirror

A block of exponents is one matrix product, because the norms and the potentials are two additional
columns; exp works in place; rows and columns are summed while the block is in the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from scripts.transport.clusters import flipped

__all__ = ["Columns", "PlanSums", "Rows"]

T = TypeVar("T")
R = TypeVar("R")
Step = Callable[[float], None]
"""Called with the share of a pass that was finished since the last call."""

_CPU_ROWS, _CPU_TILE = 256, 1024
_GPU_ROWS, _GPU_TILE = 8192, 8192
_OMITTED = 1e-5
"""Largest share of a row's or column's mass, as a bound, that leaving out blocks may cost."""
_UNSURE, _HUGE = 1e-2, 1e30
"""Rows and columns with sums outside are summed again: all terms, divided by the largest."""


@dataclass(frozen=True)
class Rows:
    """Fibres of one side in groups that are processed together.

    Attributes:
        vectors: ``(N, D)``, sorted so that groups are contiguous.
        weights: ``(N,)``, sum 1.
        starts: ``(G + 1,)`` start of each group, and the end.
    """

    vectors: Tensor
    weights: Tensor
    starts: list[int]


@dataclass(frozen=True)
class Columns:
    """Fibres of the other side; a group may leave out clusters.

    Attributes:
        vectors: ``(M, D)``, sorted so that clusters are contiguous.
        weights: ``(M,)``, sum 1.
        starts: ``(L + 1,)`` start of each cluster, and the end; None: nothing is left out.
        centres: ``(L, D)`` of the clusters.
        radii: ``(L,)`` largest distance of a member from its centre.
    """

    vectors: Tensor
    weights: Tensor
    starts: list[int] | None = None
    centres: Tensor | None = None
    radii: Tensor | None = None


class PlanSums:
    """Row, column and class sums of the plan between two sets of fibres.

    Args:
        rows, columns: the two sides; both are centred here.
        threads: number of blocks processed at once on a CPU.
    """

    def __init__(self, rows: Rows, columns: Columns, threads: int = 1) -> None:
        self.device = rows.vectors.device
        self.threads = threads if self.device.type == "cpu" else 1
        self.starts = rows.starts
        self.a, self.b = rows.weights / 2, columns.weights / 2
        # Mirror images keep this centre only if all points of a fibre have the same one. Small
        # numbers keep the digits that the norms would lose.
        points = torch.cat([rows.vectors, columns.vectors]).mean(0).reshape(-1, 3)
        self.centre = ((points + points.flip(0)) / 2).reshape(-1)
        self.x = rows.vectors - self.centre
        y = columns.vectors - self.centre
        self.half_x, half_y = self.x.square().sum(1) / 2, y.square().sum(1) / 2
        self.half_y = half_y
        self.y = torch.cat([y, flipped(y)])
        self.clusters = columns.starts
        if columns.starts is not None:
            assert columns.centres is not None and columns.radii is not None
            centres = columns.centres - self.centre
            self.centres = torch.cat([centres, flipped(centres)])
            self.radii = columns.radii.repeat(2)
            starts = torch.tensor(columns.starts, device=self.device)
            self._lengths = starts.diff().repeat(2)
            self._begins = torch.cat([starts[:-1], starts[:-1] + len(y)])
        self._buffers = threading.local()
        self.evaluated = 0
        """Number of computed entries of the plan, over all passes."""

    # -----------------------------------------------------------------------------------------

    def soft_minima(
        self, f: Tensor, g: Tensor, eps: float, step: Step | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both sides' soft minima of cost minus potential, from one pass over the plan.

        Args:
            f, g: ``(N,)`` and ``(M,)``, potentials in mm^2.
            eps: temperature, mm^2.
            step: called with progress.

        Returns:
            ``-eps log sum_j b_j exp((g_j - C_ij) / eps)`` of every row and the like of every
            column, mirror images included.
        """
        row_sums = torch.zeros_like(f)
        column_sums = torch.zeros(len(self.y), dtype=f.dtype, device=self.device)
        for (start, stop), (rows, columns, chosen) in self._pass(f, g, eps, True, None, step):
            row_sums[start:stop] = rows
            if chosen is None:
                column_sums += columns
            else:
                column_sums.index_add_(0, chosen, columns)
        columns = column_sums.view(2, -1).sum(0)
        new_f = f - eps * row_sums.log()
        new_g = g - eps * columns.log()
        self._repair(new_f, row_sums, g, eps, of_rows=True)
        self._repair(new_g, columns, f, eps, of_rows=False)
        return new_f, new_g

    def class_sums(
        self, f: Tensor, g: Tensor, eps: float, classes: Tensor, step: Step | None = None
    ) -> Tensor:
        """``sum over j of the class of b_j exp((f_i + g_j - C_ij) / eps)``, mirror images included.

        Args:
            f, g, eps: as above.
            classes: ``(M,)`` int64, 0 to C - 1.
            step: called with progress.

        Returns:
            ``(N, C)``.
        """
        count = int(classes.max()) + 1
        sums = torch.zeros(len(f), count, dtype=f.dtype, device=self.device)
        both = classes.repeat(2)
        for (start, stop), (rows, _, _) in self._pass(f, g, eps, False, both, step):
            sums[start:stop, : rows.shape[1]] = rows
        lost = self._lost(sums.sum(1))
        level = self._level(g, eps)
        for part in self._portions(lost, len(self.y)):
            exponents = torch.addmm(level, self.x[part], self.y.T, alpha=1 / eps)
            exponents.add_(((f[part] - self.half_x[part]) / eps)[:, None]).exp_()
            sums[part] = sums.new_zeros(len(part), count).index_add_(1, both, exponents)
            self.evaluated += exponents.numel()
        return sums

    def row_minima(self, g: Tensor, eps: float) -> Tensor:
        """Soft minima of the rows only, each divided by its largest term."""
        return self._whole_rows(self.x, self.half_x, self.y, self._level(g, eps), eps)

    # -----------------------------------------------------------------------------------------

    def _level(self, g: Tensor, eps: float) -> Tensor:
        return ((g - self.half_y) / eps + self.b.log()).repeat(2)

    def _lost(self, sums: Tensor) -> Tensor:
        """Indices of the rows (columns) whose sums aren't reliable."""
        return torch.nonzero(~((sums > _UNSURE) & (sums < _HUGE)), as_tuple=True)[0]

    def _portions(self, which: Tensor, width: int) -> Sequence[Tensor]:
        """Number of rows at a time that make a block of that width worth a call."""
        entries = 1 << (20 if self.device.type == "cpu" else 26)
        return which.split(max(1, entries // max(1, width))) if len(which) else ()

    def _repair(
        self, potential: Tensor, sums: Tensor, other: Tensor, eps: float, of_rows: bool
    ) -> None:
        """Compute rows (columns) with hardly any mass again, without leaving anything out.

        Their terms are too small compared with what was left out, or out of float32's range.
        """
        lost = self._lost(sums)
        if not len(lost):
            return
        if of_rows:
            rows, half, others = self.x[lost], self.half_x[lost], self.y
            level = self._level(other, eps)
        else:
            # The cost of a mirrored column is that of the mirrored row.
            rows, half = self.y[lost], self.half_y[lost]
            others = torch.cat([self.x, flipped(self.x)])
            level = ((other - self.half_x) / eps + self.a.log()).repeat(2)
        potential[lost] = self._whole_rows(rows, half, others, level, eps)

    def _whole_rows(
        self, rows_of: Tensor, half: Tensor, others: Tensor, level: Tensor, eps: float
    ) -> Tensor:
        rows = []
        for part in self._portions(torch.arange(len(rows_of), device=self.device), len(others)):
            exponents = torch.addmm(level, rows_of[part], others.T, alpha=1 / eps)
            rows.append(torch.logsumexp(exponents, 1))
            self.evaluated += exponents.numel()
        return half - eps * torch.cat(rows)

    def _pass(
        self,
        f: Tensor,
        g: Tensor,
        eps: float,
        want_columns: bool,
        classes: Tensor | None,
        step: Step | None,
    ) -> Iterator[tuple[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]]]:
        """Sums of each group of rows, in order."""
        ones = torch.ones(len(f), 1, dtype=f.dtype, device=self.device)
        left = torch.cat([self.x / eps, ((f - self.half_x) / eps)[:, None], ones], 1)
        right = torch.cat(
            [self.y, ones.new_ones(len(self.y), 1), ((g - self.half_y) / eps).repeat(2)[:, None]], 1
        )
        weights = self.b.repeat(2)
        top = self._cluster_maxima(g) if self.clusters is not None else None
        groups = list(self._groups())

        def work(group: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
            chosen = self._chosen(group, f, top, eps) if top is not None else None
            return self._group(
                left[group[0] : group[1]],
                self.a[group[0] : group[1]],
                right,
                weights,
                chosen,
                want_columns,
                classes,
            )

        for group, sums in zip(groups, _in_order(work, groups, self.threads), strict=True):
            chosen = sums[2]
            size = len(self.y) if chosen is None else len(chosen)
            self.evaluated += (group[1] - group[0]) * size
            yield group, sums
            if step is not None:
                step((group[1] - group[0]) / len(f))

    def _groups(self) -> Iterator[tuple[int, int]]:
        size = _CPU_ROWS if self.device.type == "cpu" else _GPU_ROWS
        for start, stop in zip(self.starts, self.starts[1:], strict=False):
            for begin in range(start, stop, size):
                yield begin, min(begin + size, stop)

    def _cluster_maxima(self, g: Tensor) -> Tensor:
        """Largest potential in each cluster of columns and in each mirrored one."""
        assert self.clusters is not None
        lengths = self._lengths[: len(self._lengths) // 2]
        return torch.segment_reduce(g, "max", lengths=lengths).repeat(2)

    def _chosen(self, group: tuple[int, int], f: Tensor, top: Tensor, eps: float) -> Tensor | None:
        """Columns that a group can't leave out; None: all.

        A term of row i with a column of cluster J is at most
        ``exp((f_i + max g_J - max(0, |x_i - c_J| - r_J)^2 / 2) / eps)``. Weights sum to 1, so that
        clusters whose bound is below a number cost every row and column less than that number.
        """
        assert self.clusters is not None
        start, stop = group
        x, centres = self.x[start:stop], self.centres
        inner = torch.mm(x, centres.T)
        squares = (
            inner.mul_(-2).add_(centres.square().sum(1)).add_(2 * self.half_x[start:stop, None])
        )
        gap = squares.clamp_min_(0).sqrt_().sub_(self.radii).clamp_min_(0)
        bound = (f[start:stop, None] - gap.square_().div_(2)).amax(0).add_(top)
        (kept,) = torch.nonzero(bound > eps * _LOG_OMITTED, as_tuple=True)
        if 2 * len(kept) > len(bound):
            return None
        lengths = self._lengths[kept]
        ends = lengths.cumsum(0)
        within = torch.arange(int(ends[-1]) if len(ends) else 0, device=self.device)
        shift = self._begins[kept] - (ends - lengths)
        return within + torch.repeat_interleave(shift, lengths)

    def _group(
        self,
        left: Tensor,
        a: Tensor,
        right: Tensor,
        weights: Tensor,
        chosen: Tensor | None,
        want_columns: bool,
        classes: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if chosen is not None:
            right, weights = right[chosen], weights[chosen]
            classes = classes[chosen] if classes is not None else None
        n, m = len(left), len(right)
        tile = _CPU_TILE if self.device.type == "cpu" else _GPU_TILE
        buffer = self._buffer(n * tile, left)
        columns = left.new_zeros(m if want_columns else 0)
        if classes is None:
            rows = left.new_zeros(n)
        else:
            rows = left.new_zeros(n, int(classes.max()) + 1 if m else 1)
        for begin in range(0, m, tile):
            end = min(begin + tile, m)
            plan = buffer[: n * (end - begin)].view(n, end - begin)
            torch.mm(left, right[begin:end].T, out=plan)
            plan.exp_()
            if classes is None:
                rows += torch.mv(plan, weights[begin:end])
            else:
                _add_classes(rows, plan, weights[begin:end], classes[begin:end])
            if want_columns:
                columns[begin:end] = torch.mv(plan.T, a)
        return rows, columns, chosen

    def _buffer(self, size: int, like: Tensor) -> Tensor:
        """Kept per thread, because the system takes long to provide new memory pages."""
        buffer = getattr(self._buffers, "plan", None)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers.plan = like.new_empty(size)
        return buffer


_LOG_OMITTED = float(torch.tensor(_OMITTED).log())


def _add_classes(rows: Tensor, plan: Tensor, weights: Tensor, classes: Tensor) -> None:
    """Add a tile's sums by class; neighbouring columns usually have the same class."""
    kinds, sizes = torch.unique_consecutive(classes, return_counts=True)
    begin = 0
    for kind, size in zip(kinds.tolist(), sizes.tolist(), strict=True):
        part = slice(begin, begin + size)
        rows[:, kind] += torch.mv(plan[:, part], weights[part])
        begin += size


def _in_order(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Results in the order of the items, so that sums don't depend on the order of threads."""
    if threads == 1:
        yield from map(work, items)
        return
    with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[R]] = []
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * threads:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:  # after Ctrl-C only finish what has begun
                future.cancel()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
