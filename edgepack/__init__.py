"""edgepack: trained networks as two thin matmuls a layer, small and fast on cheap CPUs."""

__version__ = "0.1.0"
