"""The gauge of a factorization: A B = (A G)(G⁻¹ B) for every invertible G, but not every G quantizes equally well."""

from __future__ import annotations

import numpy as np

from edgepack.types import Factors, Spectrum

BETA = 0.5


def balanced(factors: Factors, spectrum: Spectrum, *, seed: int) -> Factors:
    """Spread the energy evenly: G = Σ^β R with β = ½ and a seeded random rotation R.

    With orthonormal A the latent's components have standard deviations σ_k that span decades, and one int8 scale for
    the whole latent leaves the small ones no levels. After Σ^½ and a rotation all components carry alike.

    Args:
        factors: as a factorizer returned them, A = U_r.
        spectrum: the energies σ_k² behind them.
    """
    rank = factors.rank
    sigma = np.sqrt(spectrum.energies[:rank])
    floor = max(float(sigma.max()) * 1e-3, float(np.finfo(np.float32).tiny))
    scale = np.maximum(sigma, floor) ** BETA
    scale /= np.exp(np.log(scale).mean())
    normal = np.random.default_rng([seed, rank]).standard_normal((rank, rank))
    q, r = np.linalg.qr(normal)
    rotation = q * np.sign(r.diagonal())
    gauge, inverse = scale[:, None] * rotation, rotation.T / scale
    A = factors.A.astype(np.float64) @ gauge
    B = inverse @ factors.B.astype(np.float64)
    return Factors(A.astype(np.float32), B.astype(np.float32), factors.bias)
