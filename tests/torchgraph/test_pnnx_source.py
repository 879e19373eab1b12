"""What is taken of the Python text that pnnx writes, by hand-written texts: closed forms, and nothing beside them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepack.errors import ModelError
from edgepack.torchgraph import pnnx_operators
from edgepack.torchgraph.pnnx_source import build_module

X = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


def built(
    folder: Path, lines: str, setup: str = "", *, result: str = "v_1", arrays: Mapping[str, np.ndarray] | None = None
) -> torch.nn.Module:
    """The module of a text with these lines in `forward(self, v_0)` and in `__init__`."""
    loads = ""
    with zipfile.ZipFile(folder / "m.bin", "w") as archive:
        for name, values in (arrays or {}).items():
            archive.writestr(name, values.tobytes())
            loads += (
                f"        self.{name} = self.load_pnnx_bin_as_parameter("
                f"archive, {name!r}, {values.shape!r}, {values.dtype.name!r}, requires_grad=False)\n"
            )
    body = "".join(f"        {line}\n" for line in lines.split("\n"))
    (folder / "m.py").write_text(
        "import torch\n\nclass Model(nn.Module):\n"
        "    def __init__(self):\n        super(Model, self).__init__()\n"
        f"{f'        {setup}' if setup else ''}\n"
        f"        archive = zipfile.ZipFile('m.bin', 'r')\n{loads}        archive.close()\n\n"
        f"    def forward(self, v_0):\n{body}        return {result}\n",
        encoding="utf-8",
    )
    return build_module(folder / "m.py", folder / "m.bin")


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("v_1 = F.relu(v_0)", X.relu()),
        ("v_1 = torch.softmax(v_0, dim=-1)", X.softmax(-1)),
        ("v_1 = ((v_0 * 2) - torch.pow(v_0, 2.0))", X * 2 - X**2),
        ("v_1 = -v_0", -X),
        ("v_1 = (v_0 >= 3.000000e+00)", X >= 3),
        ("v_1 = torch.where(condition=(v_0 > 0), input=v_0, other=inf)", X.where(X > 0, torch.tensor(np.inf))),
        ("v_1 = v_0.reshape(3, -1)", X.reshape(3, 2)),
        ("v_1 = v_0.to(copy=False, dtype=torch.int)", X.int()),
        ("v_1 = v_0[:,1:3]", X[:, 1:3]),
        ("v_1 = v_0[...,0]", X[..., 0]),
        ("v_1 = v_0[1,None,::2]", X[1, None, ::2]),
        ("v_2, v_1 = torch.chunk(v_0, chunks=2, dim=0)", X[1:]),
        ("v_1, _ = torch.max(v_0, dim=1, keepdim=False)", X.max(1).values),
        ("v_1 = torch.max(v_0, 2.0)", X.clamp(min=2)),
        ("v_1 = torch.min(v_0, v_0)", X),
        ("v_1 = Max(v_0, 0.0)", X.relu()),
        ("v_1 = torch.clamp(v_0, max=3.402823466e+39, min=-3.402823466e+39)", X),
        ("v_1 = torch.cat((v_0, v_0), dim=1)", torch.cat((X, X), 1)),
        ("v_1 = torch.einsum('ij,kj->ik', v_0, v_0)", X @ X.T),
        ("v_1 = F.gelu(v_0, approximate='tanh')", torch.nn.functional.gelu(X, approximate="tanh")),
        ("v_1 = F.pad(v_0, mode='constant', pad=(1,0), value=0.0)", torch.nn.functional.pad(X, (1, 0))),
        ("v_1 = torch.zeros(dtype=torch.float, size=(2,3))", X * 0),
        ("v_1 = torch.clone(v_0)\nv_1[0,:] = v_0[1,:]", X[[1, 1]]),
        ("v_1 = torch.fft.rfft(v_0, norm='ortho')", torch.fft.rfft(X, norm="ortho")),
    ],
)
def test_forms_that_pnnx_writes(tmp_path: Path, line: str, want: torch.Tensor) -> None:
    torch.testing.assert_close(built(tmp_path, line)(X.clone()), want)


def test_layers_and_arrays(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    module = built(
        tmp_path,
        "v_1 = self.lin(v_0)\nv_2 = self.b_data\nv_3 = (v_1 + v_2)",
        "self.lin = nn.Linear(bias=False, in_features=3, out_features=2)",
        result="v_3, v_1",
        arrays={"lin.weight": weight, "b_data": np.array([1, 2])},
    )
    total, product = module(X)
    torch.testing.assert_close(product, X @ torch.from_numpy(weight).T)
    torch.testing.assert_close(total, product + torch.tensor([1, 2]))
    assert [name for name, _ in module.named_parameters()] == ["b_data", "lin.weight"]
    program = torch.export.export(module, (X,), strict=False)
    torch.testing.assert_close(program.module()(X), (total, product))


REFUSED = (
    # names and attributes beyond the lists
    *("torch.importlib.import_module('os')", "torch.importlib.import_module('os').system('true')", "torch.os.getcwd()"),
    *("F.os.system('true')", "F.torch.hub.load('a', 'b')", "torch.nn.functional.relu(v_0)", "torch.load('x')"),
    *("torch.hub.load('a', 'b')", "torch.ops.load_library('x')", "torch.jit.script(v_0)", "torch.compile(v_0)"),
    *("torch.from_file('x')", "torch.frombuffer(v_0)", "torch.sys.exit()", "torch.nn.Linear(1, 2)", "nn.Linear(1, 2)"),
    *("torch._C._jit_set_profiling_mode(True)", "torch.Tensor.relu(v_0)", "torch.utils.data.get_worker_info()"),
    *("torch.empty(3)", "torch.rand(3)", "torch.manual_seed(0)", "torch.set_default_dtype(torch.half)"),
    *("torch.vmap(v_0)", "torch.func.grad(v_0)", "torch.cond(v_0, v_0, v_0)", "torch", "F", "nn", "torch.relu"),
    *("self", "self.forward", "self.training", "self.__class__", "self.apply(v_0)", "self.load_state_dict(v_0)"),
    *("v_0.__class__", "v_0.data", "v_0.grad_fn", "v_0.shape", "v_0.numpy()", "v_0.tolist()", "v_0.register_hook(v_0)"),
    *("v_0.apply_(v_0)", "v_0.map_(v_0, v_0)", "v_0.__reduce__()", "v_0.share_memory_()", "v_0.reshape.__self__"),
    *("torch.abs(v_0).__class__", "torch.abs(v_0).numpy()", "torch.abs(v_0).reshape(6).tolist()", "torch.abs(v_0)()"),
    *("(v_0).mro()", "v_0.reshape(6).data", "v_0[0].data", "v_9", "os", "open('x')", "eval('1')", "exec('1')"),
    *("__import__('os').system('true')", "getattr(v_0, 'data')", "print(v_0)", "str(v_0)", "type(v_0)", "int(v_0)"),
    *("Relu(v_0)", "ScatterElements(v_0, v_0)", "torch.Max(v_0, v_0)", "torch.Gather(v_0, v_0)", "self.Max(v_0, 1)"),
    # forms of the language
    *("(lambda: v_0)()", "(lambda v_1: v_1)", "[v_1 for v_1 in (1,)]", "{v_1 for v_1 in (1,)}", "{1: v_0}", "{v_0}"),
    *("{v_1: 1 for v_1 in (1,)}", "tuple(v_1 for v_1 in (1,))", "(v_2 := v_0)", "f'{v_0}'", "torch.abs(f'{v_0}')"),
    "torch.einsum(f'{v_0}', v_0)",
    *("torch.abs(*v_0)", "torch.abs(*(v_0,))", "torch.abs(**{'input': v_0})", "[*v_0]", "v_0 if v_0 else v_0"),
    *("v_0 and v_0", "not v_0", "(yield v_0)", "(await v_0)", "1 < v_0 < 2", "v_0 is v_0", "1 in v_0", "v_0 ** 2"),
    *("'text'", "b'text'", "('a', 'b')", "'a' * 9", "'%s' % v_0", "'{}'.format(v_0)", "...", "v_0[{}]", "v_0['a']"),
    # text and names of arguments
    *("torch.abs('x')", "F.gelu(v_0, approximate='other')", "F.gelu(v_0, approximate='tanh ')", "F.gelu(v_0, 'tanh')"),
    *("F.gelu(v_0, mode='tanh')", "F.pad(v_0, pad=(1,1), mode='os')", "F.pad(v_0, pad=('a',), mode='constant')"),
    *(
        "torch.einsum('ij->ji\\n', v_0)",
        "torch.einsum('i\\'j', v_0)",
        "torch.einsum(v_0, v_0)",
        "torch.einsum('', v_0)",
    ),
    *("torch.einsum(equation='ij', operands=v_0)", "torch.einsum('ij', v_0, out=v_0)", "torch.abs(v_0, out=v_0)"),
    *("torch.zeros(3, device='cuda')", "torch.zeros(3, device=0)", "torch.normal(0, 1)", "torch.abs(v_0, _x=1)"),
    *("torch.abs(input=torch)", "torch.abs(input=torch.abs)", "torch.abs(input=print)", "torch.abs(input=self)"),
    *(
        "torch.div(v_0, 2, rounding_mode='up')",
        "v_0.to(torch.device('cpu'))",
        "v_0.to('cuda')",
        "v_0.to(dtype='float')",
    ),
)


@pytest.mark.parametrize("expression", REFUSED)
def test_everything_else_is_refused(tmp_path: Path, expression: str) -> None:
    with pytest.raises(ModelError):
        built(tmp_path, f"v_1 = {expression}")


@pytest.mark.parametrize(
    "line",
    [
        *("import os", "from os import system", "del v_0", "pass", "v_0", "torch.abs(v_0)", "raise v_0", "assert v_0"),
        *("global v_1", "v_1: int = 1", "v_1 = 1\nv_1 += 1", "v_1 = v_2 = 1", "os = 1", "torch = v_0", "self = v_0"),
        *("self.forward = v_0", "torch.abs = v_0", "v_0.data = v_0", "v_1, torch = v_0", "v_1, *v_2 = v_0"),
        *("v_1 = v_2\nv_2 = 1", "self.x[0] = 1", "v_9[0] = 1", "[v_1] = v_0", "return v_0\nv_1 = v_0"),
        *("if v_0:\n            v_1 = 1", "for v_1 in v_0:\n            v_2 = 1", "while v_0:\n            v_1 = 1"),
        *("with v_0:\n            v_1 = 1", "def v_1():\n            return 1", "class v_1:\n            v_2 = 1"),
        *(
            "try:\n            v_1 = 1\n        except Exception:\n            v_1 = 2",
            "v_1 = 1; import os",
            "ｖ_1 = os",
        ),
        *("match v_0:\n            case _:\n                v_1 = 1", "async def v_1():\n            return 1"),
    ],
)
def test_statements_that_are_no_steps(tmp_path: Path, line: str) -> None:
    with pytest.raises(ModelError):
        built(tmp_path, line, result="v_0")


@pytest.mark.parametrize(
    "setup",
    [
        *("self.a = nn.Linear(open('x'), 2)", "self.a = nn.Linear(in_features=open('x'), out_features=2)"),
        *(
            "self.a = nn.Linear(3, 2)",
            "self.a = nn.Module()",
            "self.a = nn.Sequential()",
            "self.a = nn.modules.Linear()",
        ),
        *(
            "self.a = torch.importlib.import_module(name='os')",
            "self.a = torch.nn.Linear(in_features=3, out_features=2)",
        ),
        *(
            "self.a = nn.Conv1d(in_channels=1, out_channels=1, kernel_size=1, padding_mode='os')",
            "import os",
            "self.a = 1",
        ),
        *(
            "self.forward = nn.Identity()",
            "self.a.b = nn.Identity()",
            "self.__class__ = nn.Identity()",
            "a = nn.Identity()",
        ),
        *(
            "nn.Identity = nn.ReLU()",
            "archive = open('x')",
            "archive = torch.load('x')",
            "torch.load('x')",
            "archive.x()",
        ),
        *(
            "self.a = nn.Linear(in_features=3, out_features=2, device='cuda')",
            "self.a = F.relu()",
            "self.a = torch.abs()",
        ),
        *("self.a = self.load_pnnx_bin_as_tensor(archive, open('x'), (1,), 'float32')", "self.a = nn.Linear(**self)"),
        *(
            "self.a = self.load_pnnx_bin_as_tensor(archive, 'k', (1,), 'object')",
            "self.a = nn.Linear(in_features=self)",
        ),
        *(
            "self.a = self.load_pnnx_bin_as_tensor(archive, 'k', (1.5,), 'float32')",
            "for i in (): pass",
            "self.a: int = 1",
        ),
        *(
            "self.a = self.load_pnnx_bin_as_tensor(archive)",
            "self.a = v_0.load_pnnx_bin_as_tensor(1, 'k', (1,), 'float32')",
        ),
        "self.a = self.load_pnnx_bin_as_tensor(archive, 'absent', (1,), 'float32')",
    ],
)
def test_constructors_that_are_no_layers(tmp_path: Path, setup: str) -> None:
    with pytest.raises(ModelError):
        built(tmp_path, "v_1 = v_0", setup)


def test_what_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no torch counterpart for 'ScatterElements'"):
        built(tmp_path, "v_1 = torch.abs(ScatterElements(v_0, v_0))")
    with pytest.raises(ModelError, match="no torch counterpart for 'open'"):
        built(tmp_path, "v_1 = v_0", "self.a = nn.Linear(in_features=open('x'), out_features=2)")


@pytest.mark.parametrize(
    "signature", ["self, v_0=1", "self, *v_0", "self, **v_0", "self, v_0: int", "self, x", "v_0", "self, *, v_0", ""]
)
def test_arguments_are_plain_names(tmp_path: Path, signature: str) -> None:
    methods = f"    def __init__(self):\n        archive.close()\n    def forward({signature}):\n        return 1\n"
    (tmp_path / "m.py").write_text(f"class Model:\n{methods}")
    zipfile.ZipFile(tmp_path / "m.bin", "w").close()
    with pytest.raises(ModelError):
        build_module(tmp_path / "m.py", tmp_path / "m.bin")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "\0",
            "class Model:\n    pass\n",
            "def forward(self): return 1\n",
            "(" * 1000,
            "x = " + "-" * 100000 + "1",
        ),
        "class Model:\n    __init__ = forward = print\n",
    ],
)
def test_texts_without_a_model(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.py").write_text(text)
    with pytest.raises(ModelError):
        build_module(tmp_path / "m.py", tmp_path / "m.bin")


@pytest.mark.parametrize(
    "lines",
    [
        "v_1 = (1 << 99999999999)",
        "v_2 = 9223372036854775807\nv_3 = (v_2 * v_2)\nv_1 = (v_3 * v_3)",
        "v_2 = [0]\nv_1 = (v_2 * 99999999999)",
        "v_2 = (0, 0)\nv_1 = (v_2 + v_2)",
        "v_1, v_2, v_3 = torch.chunk(v_0, chunks=2, dim=0)",
    ],
)
def test_numbers_do_not_grow_and_lists_are_no_operands(tmp_path: Path, lines: str) -> None:
    module = built(tmp_path, lines)
    with pytest.raises(ModelError):
        module(X)


def test_every_permitted_name_is_one_of_torchs() -> None:
    """And none that keeps state, draws at random, reads or takes a function."""
    lists = pnnx_operators.names()
    for family, find in (("torch", "function"), ("torch.fft", "function"), ("F", "function"), ("nn", "layer")):
        assert all(callable(getattr(pnnx_operators, find)(f"{family}.{name}")) for name in lists[family])
    assert all(callable(pnnx_operators.method(name)) for name in lists["Tensor"])
    assert all(pnnx_operators.constant(f"torch.{name}") is not None for name in lists["dtype"])
    everything = frozenset().union(*lists.values())
    assert not [name for name in everything if name.startswith("_") or "." in name]
    assert not everything & {"load", "save", "compile", "apply_", "map_", "from_file", "frombuffer", "rand", "randn"}
    assert pnnx_operators.function("torch.importlib") is None
    assert pnnx_operators.layer("nn.Module") is None
    assert pnnx_operators.method("__class__") is None
    assert pnnx_operators.constant("torch.ops") is None
