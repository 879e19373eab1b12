from edgepack import errors as errors
from edgepack.api.bench import bench as bench
from edgepack.api.bench import compare as compare
from edgepack.api.build import build as build
from edgepack.api.compress import compress as compress
from edgepack.api.inspect import inspect as inspect
from edgepack.api.results import Comparison as Comparison
from edgepack.api.results import Inspection as Inspection
from edgepack.api.results import OperatorInspection as OperatorInspection
from edgepack.api.results import Pack as Pack
from edgepack.api.results import Packs as Packs
from edgepack.api.results import open_pack as open_pack
from edgepack.api.target import load_target as load_target
from edgepack.methods.registry import register_method as register_method
from edgepack.model.types import Recipe as Recipe
from edgepack.pipeline.options import BuildOptions as BuildOptions
from edgepack.targets.target import Target as Target

__version__: str
