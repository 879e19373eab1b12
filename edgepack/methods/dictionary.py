"""Dictionary learning: a weight matrix whose columns, or rows, are each a sum of a few atoms.

By columns W ≈ D S, D (out, atoms) and S (atoms, in) with few numbers per column; by rows W ≈ S D, S (out, atoms) with
few numbers per row and D (atoms, in). S is stored sparse; once it is decoded, two matmuls are what an inference costs.

S and D are found in turn: S by orthogonal matching pursuit, D by least squares (MOD: Engan, Aase and Husøy, "Method of
Optimal Directions for Frame Design", ICASSP 1999). With inputs of covariance C the loss is tr((W − M) C (W − M)ᵀ). By
rows both steps are exact in it: a row's signal is its output, of Gram matrix D C Dᵀ, and D needs no C. By columns the
loss ties all columns of S together; there S is found as without data, and D = W C Sᵀ (S C Sᵀ)⁻¹.

Orthogonal matching pursuit for many signals at once.

Pati, Rezaiifar and Krishnaprasad (Asilomar 1993), from inner products alone: the Gram matrix of the atoms and their
products with the signals (Rubinstein, Zibulevsky and Elad, "Efficient Implementation of the K-SVD Algorithm using Batch
Orthogonal Matching Pursuit", Technion CS-2008-08, section 2). Where that keeps a Cholesky factor per signal, this keeps
its inverse: its last row is the atom that came last, made orthogonal to those before, so that a step is one product of
all signals' rows with the Gram matrix, and no triangular system is solved.

Matrices whose entries share few numbers, M_ij = s_ij w[k_ij]: the shared numbers that lose least of the output.

tr((W − M) C (W − M)ᵀ) is quadratic in w; its gradient is a sum over buckets. So it is fitted by conjugate gradients,
preconditioned by the diagonal (Hestenes and Stiefel, Journal of Research of the NBS 49, 1952), which never does worse
than what it starts from and needs a product of the layer's size per iteration, no matrix of the shared numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgepack.errors import UsageError
from edgepack.factorize.leastsquares import metric, with_corrected_bias
from edgepack.methods import pruning
from edgepack.methods.budget import allowed_bytes, bytes_in_8_bits, most_floats
from edgepack.model.constexpr import Writer, X
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array

Side = Literal["rows", "columns"]

SHARE_OF_ATOMS = 0.5
"""Of the bytes, for the dictionary; the rest is for what each row or column takes of it."""
ROUNDS = 6
"""Of S and D in turn."""
_RIDGE = 1e-9

_SIGNALS = 512
"""At once: the inverses take as many squares of the number of atoms per signal."""
_DEPENDENT = 1e-8
"""An atom with less of its energy left outside of those chosen before is not chosen."""

ITERATIONS = 12
LARGEST_WORK = 200_000_000_000
"""Multiplications of one fit at most: a layer of 4096 × 4096 gets two iterations."""


def dictionary(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """Atoms and coefficients of the side that gives the most of both, in `share` of a byte per weight.

    A number of the dictionary takes a byte, one of S two. About a half of the bytes are for each: `SHARE_OF_ATOMS`.

    Args:
        layer: with moments, fitted to what its output loses; without, to the weight.
        share: of the weight's bytes in 8 bits, between 0 and 1.
        seed: of the first atoms.
        gradient: without effect.

    Raises:
        UsageError: the share is not between 0 and 1.
    """
    allowed = allowed_bytes(layer, share)
    side = best_side(layer)
    shape = sized(layer.out_features, layer.in_features, allowed, side)
    if shape is None:
        return f"{share:g} of its bytes do not hold two atoms and one of them in each of its {side}"
    atoms, nonzeros = shape
    left = allowed - bytes_in_8_bits(atoms, _atom_length(layer, side)) - pruning.OVERHEAD
    return learned(layer, atoms, nonzeros, seed, side=side, left=left)


def best_side(layer: View) -> Side:
    """The side with more of them: its atoms are shorter, so there are more for the same bytes."""
    return "rows" if layer.out_features >= layer.in_features else "columns"


def sized(out_features: int, in_features: int, allowed: int, side: Side) -> tuple[int, int] | None:
    """Atoms and numbers of S per signal; None where fewer than two atoms, or none for a signal, fit."""
    signals, length = (out_features, in_features) if side == "rows" else (in_features, out_features)
    left = allowed - pruning.OVERHEAD
    nonzeros = max(round(most_floats(int((1 - SHARE_OF_ATOMS) * left), beside=1) / signals), 1)
    while nonzeros:
        rest = left - pruning.entry_bytes(nonzeros * signals)
        atoms = max((k for k in range(signals + 1) if bytes_in_8_bits(k, length) <= rest), default=0)
        if atoms >= max(2, nonzeros):
            return atoms, nonzeros
        nonzeros -= 1
    return None


def learned(
    layer: View,
    atoms: int,
    nonzeros: int,
    seed: int = 0,
    *,
    side: Side = "columns",
    left: int | None = None,
) -> Replacement:
    """The layer with `atoms` atoms, of which each row or column takes `nonzeros`.

    Args:
        layer: with or without moments.
        atoms: 1 … rows or columns of the weight.
        nonzeros: 1 … atoms.
        seed: of the first atoms.
        side: what is a sum of atoms.
        left: bytes for S: where zeros between far numbers take it beyond, the smallest are left out. None for any.

    Raises:
        UsageError: numbers that make no sense.
    """
    weight = layer.weight.astype(np.float64)
    signals = len(weight) if side == "rows" else weight.shape[1]
    if not 1 <= nonzeros <= atoms <= signals:
        raise UsageError(f"{layer.name}: {nonzeros} of {atoms} atoms in each of {signals} {side}")
    problem = _Problem(weight, metric(layer), side)
    book = problem.first(atoms, seed)
    codes = problem.codes(book, nonzeros)
    for _ in range(ROUNDS - 1):
        book = problem.revived(problem.atoms(codes), codes)
        codes = problem.codes(book, nonzeros)
    if left is not None:
        codes = _fitting(codes if side == "rows" else codes.T, left)
        codes = codes if side == "rows" else codes.T
    return with_corrected_bias(layer, _coded(layer, codes, problem.atoms(codes), side))


@dataclass(frozen=True)
class _Problem:
    """One layer, seen as signals × atoms: `codes` are (signals, atoms), a `book` is (atoms, length)."""

    weight: Array
    covariance: Array | None
    side: Side

    @property
    def signals(self) -> Array:
        """(signals, length)."""
        return self.weight if self.side == "rows" else self.weight.T

    def first(self, atoms: int, seed: int) -> Array:
        """Some of the signals."""
        some = np.random.default_rng(seed).permutation(len(self.signals))[:atoms]
        return self.signals[some]

    def codes(self, book: Array, nonzeros: int) -> Array:
        """What each signal takes of the atoms."""
        aware = self.covariance is not None and self.side == "rows"
        seen = book @ self.covariance if aware else book
        return pursuit(seen @ book.T, self.signals @ seen.T, nonzeros)

    def atoms(self, codes: Array) -> Array:
        """The atoms that are best for the codes; zeros for one that no signal takes."""
        weighed = codes if self.covariance is None or self.side == "rows" else self.covariance @ codes
        gram = codes.T @ weighed
        gram[np.diag_indices(len(gram))] += _RIDGE * max(float(np.trace(gram)) / len(gram), 1e-30)
        return np.linalg.solve(gram, weighed.T @ self.signals)

    def revived(self, book: Array, codes: Array) -> Array:
        """The book with the signals that are worst off in place of atoms that no signal takes."""
        idle = np.flatnonzero(~codes.any(axis=0))
        if len(idle):
            error = np.square(self.signals - codes @ book).sum(axis=1)
            book[idle] = self.signals[np.argsort(-error, kind="stable")[: len(idle)]]
        return book


def _fitting(codes: Array, left: int) -> Array:
    """The codes, as they lie in the file, without the smallest that do not fit."""
    sizes = np.abs(codes) / np.maximum(np.abs(codes).max(), 1e-300)
    positions = pruning.most_that_fit(np.where(codes != 0, 1 + sizes, 0.0), left)
    kept = np.zeros(codes.size)
    kept[positions] = codes.reshape(-1)[positions]
    return kept.reshape(codes.shape)


def _coded(layer: View, codes: Array, book: Array, side: Side) -> Replacement:
    peaks = np.abs(codes).max(axis=0)
    peaks[peaks == 0] = 1.0
    codes, book = codes / peaks, (book * peaks[:, None]).astype(np.float32)  # atoms have scales of their own in 8 bits
    sparse = codes if side == "rows" else codes.T
    positions = np.flatnonzero(sparse)
    positions = positions if len(positions) else np.zeros(1, np.int64)
    w = Writer()
    dense = w.constant("atoms", book)
    found = pruning.write(w, "codes", sparse, positions, scaled=False)
    if side == "rows":
        inner = w.step("matmul", X, w.step("transpose", dense, perm=(1, 0)))
        w.step("matmul", inner, w.step("transpose", found, perm=(1, 0)))
    else:
        inner = w.step("matmul", X, w.step("transpose", found, perm=(1, 0)))
        w.step("matmul", inner, dense)
    return w.direct(layer.in_features, layer.bias)


def _atom_length(layer: View, side: Side) -> int:
    return layer.in_features if side == "rows" else layer.out_features


def pursuit(gram: Array, products: Array, nonzeros: int) -> Array:
    """(signals, atoms) float64: coefficients, at most `nonzeros` per signal, least squares on the atoms chosen.

    Args:
        gram: (atoms, atoms), symmetric and positive semidefinite: inner products of the atoms.
        products: (signals, atoms): inner products of the signals with the atoms.
        nonzeros: atoms per signal, at most as many as there are.
    """
    from threadpoolctl import threadpool_limits

    energies = np.diag(gram).copy()
    sizes = np.sqrt(np.where(energies > 0, energies, np.inf))
    unit = gram / sizes / sizes[:, None]
    parts = range(0, len(products), _SIGNALS)
    with threadpool_limits(1):  # of BLAS: on a busy machine threads wait longer for one another than such products take
        found = [_pursuit(unit, products[i : i + _SIGNALS] / sizes, nonzeros) for i in parts]
    return np.concatenate(found) / sizes


def _pursuit(gram: Array, products: Array, nonzeros: int) -> Array:
    """The same for atoms of unit norm, or zero, and few signals."""
    signals, atoms = products.shape
    every = np.arange(signals)
    left = products.copy()  # inner products of what is not yet explained
    free = np.ones((signals, atoms), bool)
    coefficients = np.zeros((signals, atoms))
    chosen = np.zeros((signals, nonzeros), np.int64)
    inverse = np.zeros((signals, nonzeros, nonzeros))
    for step in range(nonzeros):
        best = np.where(free, np.abs(left), -1.0).argmax(axis=1)
        free[every, best] = False
        before = chosen[:, :step]
        rows = inverse[:, :step, :step]
        shadow = (rows @ gram[before, best[:, None]][:, :, None])[:, :, 0]
        rest = gram[best, best] - np.square(shadow).sum(axis=1)
        usable = rest > _DEPENDENT
        size = np.sqrt(np.where(usable, rest, 1.0))
        row = np.zeros((signals, step + 1))
        row[:, :step] = -(shadow[:, None] @ rows)[:, 0] / size[:, None]
        row[:, step] = 1 / size
        row *= usable[:, None]
        chosen[:, step] = best
        inverse[:, step, : step + 1] = row
        direction = np.zeros((signals, atoms))
        direction[every[:, None], chosen[:, : step + 1]] = row
        amount = (row * products[every[:, None], chosen[:, : step + 1]]).sum(axis=1)[:, None]
        coefficients += amount * direction
        left -= amount * (direction @ gram)
    return coefficients


def bucket_sums(entries: Array, index: Array, count: int) -> Array:
    """(count,) float64: the sum of the entries of each bucket, both of one shape."""
    return np.bincount(index.reshape(-1), weights=entries.reshape(-1), minlength=count)


def bucket_means(weight: Array, index: Array, count: int, importance: Array, signs: Array | None = None) -> Array:
    """(count,) float64: the shared numbers that are best where C is diagonal, in closed form; 0 for an empty bucket.

    Args:
        weight: (out, in).
        index: (out, in) whole numbers below `count`: which number stands there.
        count: of the shared numbers.
        importance: (in,) ≥ 0: the diagonal of C.
        signs: (out, in) of ±1; None for all +1.
    """
    signed = weight * importance if signs is None else weight * importance * signs
    weights = bucket_sums(np.broadcast_to(importance, weight.shape), index, count)
    return np.divide(bucket_sums(signed, index, count), weights, out=np.zeros(count), where=weights > 0)


def refitted(
    weight: Array,
    index: Array,
    start: Array,
    covariance: Array,
    signs: Array | None = None,
    iterations: int = ITERATIONS,
) -> Array:
    """(count,) float64: shared numbers that lose less of the output than those at the start, or as much.

    Args:
        weight: (out, in).
        index: (out, in) whole numbers below len(start): which number stands there.
        start: (count,).
        covariance: (in, in), symmetric and positive semidefinite.
        signs: (out, in) of ±1; None for all +1.
        iterations: at most; fewer where the layer is so large that they take more than `LARGEST_WORK`.
    """
    count = len(start)

    def spread(shared: Array) -> Array:
        return shared[index] if signs is None else shared[index] * signs

    def gathered(matrix: Array) -> Array:
        return bucket_sums(matrix if signs is None else matrix * signs, index, count)

    found = start.astype(np.float64)
    curvature = bucket_sums(np.broadcast_to(np.diag(covariance), weight.shape), index, count)
    inverse = np.divide(1.0, curvature, out=np.zeros(count), where=curvature > 0)
    slope = gathered((weight - spread(found)) @ covariance)
    towards = scaled = inverse * slope
    power = first = float(slope @ scaled)
    for _ in range(min(iterations, LARGEST_WORK // (weight.size * len(covariance)))):
        if not power > 1e-12 * first:
            break
        bent = gathered(spread(towards) @ covariance)
        curve = float(towards @ bent)
        if not curve > 0:
            break
        found = found + power / curve * towards
        slope = slope - power / curve * bent
        scaled = inverse * slope
        power, before = float(slope @ scaled), power
        towards = scaled + power / before * towards
    return found
