"""Orthogonal matching pursuit for many signals at once.

Pati, Rezaiifar and Krishnaprasad (Asilomar 1993), from inner products alone: the Gram matrix of the atoms and their
products with the signals (Rubinstein, Zibulevsky and Elad, "Efficient Implementation of the K-SVD Algorithm using Batch
Orthogonal Matching Pursuit", Technion CS-2008-08, section 2). Where that keeps a Cholesky factor per signal, this keeps
its inverse: its last row is the atom that came last, made orthogonal to those before, so that a step is one product of
all signals' rows with the Gram matrix, and no triangular system is solved.
"""

from __future__ import annotations

import numpy as np

from edgepack.types import Array

_SIGNALS = 512
"""At once: the inverses take as many squares of the number of atoms per signal."""
_DEPENDENT = 1e-8
"""An atom with less of its energy left outside of those chosen before is not chosen."""


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
