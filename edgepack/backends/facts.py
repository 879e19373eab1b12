"""What there is to know of a backend and its runtimes that is neither code nor a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgepack.model.model import NativeName
from edgepack.model.scheme import Scheme


@dataclass(frozen=True)
class ConstexprFacts:
    """What layers with weights computed from stored constants cost in a backend.

    Times are those of an inference of the layer over that of the dense layer in fp32: one number for each kind,
    measured on 784-512-10 at a quarter of its bytes, batch 1, on an AMD EPYC.

    Attributes:
        bytes_per_instruction: of the file, names included.
        decoded: where the runtime multiplies by a matrix that was decoded at load.
        direct: of products in float32 with smaller matrices, at a quarter of the bytes.
        convolved: of a convolution, from whose results numbers are gathered and summed.
    """

    bytes_per_instruction: int
    decoded: float
    direct: float
    convolved: float


@dataclass(frozen=True)
class Schemes:
    """What the weights of a format can be stored in.

    Attributes:
        layers: of a linear layer, dense or factored.
        dense_int8: of a dense model in 8 bits, in the stated order of preference; the first needs no data.
        fp32: floats, as the source has them.
        constexpr: of layers whose weights are computed from stored constants.
    """

    layers: tuple[Scheme, ...]
    dense_int8: tuple[Scheme, ...]
    fp32: Scheme
    constexpr: Scheme


@dataclass(frozen=True)
class Facts:
    """A backend as data.

    Attributes:
        title: what people call the file format.
        schemes: see there.
        install: the command that installs what writing it takes.
        packages: those that writing it takes, beside edgepack's own.
        converters: by what a model is by itself, packages that writing it takes as well.
        closed: by what a model is by itself, why no file of this format can be made of it.
        purposes: of packages that serve this format alone: what they do, for people.
        runtimes: on a device, in the order in which the runner looks for them; the first is the one to install.
        tested: the newest version of that one that the tests ran on.
        tool: of the runtime's makers, that measures a file on a device without Python.
        browser_package: on npm, that runs a file in a browser.
        timed_call: of the runtime, that the runner times.
        call_instructions: of one call of the runtime, counted on an emulated Cortex-A72.
        float_values, integer_values: instructions per input and per output value of an operator, where the runtime sees
            float activations and where it quantizes them: copying them into the kernel's order, quantizing, scaling
            back. From 16x2048 and 2048x16 on emulated Cortex-A72 and A76, the products taken off.
        patch_value: instructions per value of a convolution's patches, to copy it into the kernel's order; 0 where
            kernels read them where they are. ONNX Runtime: 1.4 to 6.7, median 4.2, of five convolutions of 1 to 64
            channels on emulated Cortex-A72 and A76, their products taken off.
        constexpr: see there.
        folds: whether a converter may fold a layer's bias or scale into its neighbours.
        open_shapes: whether a file that is written takes inputs of several shapes.
        whole_cells: recurrent operators that store the weights of inputs and states in one scheme.
    """

    title: str
    schemes: Schemes
    install: str
    packages: tuple[str, ...]
    converters: Mapping[NativeName, tuple[str, ...]]
    closed: Mapping[NativeName, str]
    purposes: Mapping[str, str]
    runtimes: tuple[str, ...]
    tested: str
    tool: str
    browser_package: str
    timed_call: str
    call_instructions: float
    float_values: tuple[float, float]
    integer_values: tuple[float, float]
    patch_value: float
    constexpr: ConstexprFacts
    folds: bool
    open_shapes: bool
    whole_cells: tuple[str, ...] = ()
