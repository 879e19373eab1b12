"""Plain truncated SVD: the best rank-r approximation of the weight itself (Eckart and Young, 1936). Sees no data."""

from __future__ import annotations

import numpy as np

from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Spectrum

needs_moments = False


def spectrum(layer: View) -> Spectrum:
    """Left singular vectors and squared singular values of the weight: the output energy for white inputs."""
    return decompose(layer.weight.astype(np.float64))


def decompose(matrix: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Spectrum:
    """Left singular vectors and squared singular values of (out, in), from the Gram matrix of its smaller side.

    An eigendecomposition of the smaller Gram matrix costs a fraction of an SVD. It loses the singular values below
    1e-8 of the largest: those carry 1e-16 of the energy.
    """
    rows, columns = matrix.shape
    if rows <= columns:
        energies, basis = np.linalg.eigh(matrix @ matrix.T)
        return Spectrum(basis[:, ::-1].astype(np.float32), np.clip(energies[::-1], 0.0, None))
    energies, right = np.linalg.eigh(matrix.T @ matrix)
    # QR of W V keeps the columns orthonormal where a singular value vanishes and W V / σ would not.
    basis, _ = np.linalg.qr(matrix @ right[:, ::-1])
    return Spectrum(basis.astype(np.float32), np.clip(energies[::-1], 0.0, None))


def factors(layer: View, spectrum: Spectrum, rank: int) -> Replacement:
    """A = U_r, B = U_rᵀ W: the same product as U_r Σ_r V_rᵀ; the bias stays as it is."""
    basis = spectrum.basis[:, :rank]
    return low_rank(np.ascontiguousarray(basis), np.asarray(basis.T @ layer.weight, np.float32), layer.bias)
