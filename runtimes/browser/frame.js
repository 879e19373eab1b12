// One job: loads a runtime and a model, warms up, and times batches of inferences. Clocks of browsers are coarse, and
// coarser on purpose, so that a batch takes a tenth of a second or more; what is reported is the mean of each.

const SAMPLE_S = 0.1;
const FEWEST_SAMPLES = 5;
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array,
};

const now = () => performance.now() / 1000;

function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function textOf(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let start = 0; start < bytes.length; start += 32768) {
    text += String.fromCharCode(...bytes.subarray(start, start + 32768));
  }
  return btoa(text);
}

function typed(input) {
  const kind = ARRAYS[input.dtype];
  if (!kind) throw new Error(`an input of ${input.dtype}, which browsers have no arrays for`);
  const bytes = bytesOf(input.data);
  return new kind(bytes.buffer, 0, bytes.length / kind.BYTES_PER_ELEMENT);
}

async function onnx(job, bytes) {
  const start = now();
  const ort = await import("./vendor/ort.mjs");
  ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  ort.env.wasm.numThreads = job.threads;
  ort.env.logLevel = "error";
  const imported = now();
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const feeds = {};
  job.inputs.forEach((input) => {
    feeds[input.name] = new ort.Tensor(input.dtype, typed(input), input.shape);
  });
  return {
    runtime_s: imported - start,
    session_s: now() - imported,
    run: () => session.run(feeds),
    answers: (found) => session.outputNames.map((name) => {
      const tensor = found[name];
      if (!tensor.data) throw new Error(`its output ${name} is no tensor`);
      return { name, dtype: tensor.type, shape: [...tensor.dims], data: textOf(tensor.data) };
    }),
    release: () => undefined,
  };
}

async function tflite(job, bytes) {
  const start = now();
  Object.defineProperty(navigator, "gpu", { value: undefined }); // it would set one up, which is not what is timed
  const { loadLiteRt, loadAndCompile, Tensor } = await import("./vendor/litert.mjs");
  await loadLiteRt(new URL("./vendor/", import.meta.url).href, { threads: job.threads > 1 });
  const imported = now();
  const model = await loadAndCompile(bytes, { accelerator: "wasm", cpuOptions: { numThreads: job.threads } });
  const inputs = job.inputs.map((input) => new Tensor(typed(input), input.shape));
  const names = model.getOutputDetails().map((output) => output.name);
  return {
    runtime_s: imported - start,
    session_s: now() - imported,
    run: () => model.run(inputs),
    answers: (found) => found.map((tensor, index) => ({
      name: names[index], dtype: tensor.type.dtype, shape: [...tensor.type.layout.dimensions],
      data: textOf(tensor.toTypedArray()),
    })),
    release: (found) => found.forEach((tensor) => tensor.delete()),
  };
}

async function measure(job) {
  const answer = await fetch(job.model);
  if (!answer.ok) throw new Error(`${job.model}: ${answer.status}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const model = await (job.format === "onnx" ? onnx : tflite)(job, bytes);
  const first = now();
  const found = await model.run();
  const first_inference_s = now() - first;
  const answers = model.answers(found);
  model.release(found);

  async function batch(runs) {
    const start = now();
    for (let run = 0; run < runs; run += 1) model.release(await model.run());
    return now() - start;
  }

  const warm = now();
  let warmed = 0;
  while (warmed < job.warmup_runs || now() - warm < job.warmup_s) {
    await batch(1);
    warmed += 1;
  }
  let runs_per_sample = 1;
  for (let taken = await batch(1); taken < SAMPLE_S; taken = await batch(runs_per_sample)) {
    runs_per_sample = Math.ceil(runs_per_sample * Math.min(10, Math.max(1.2, (1.1 * SAMPLE_S) / Math.max(taken, 1e-4))));
  }
  let latency_s = [];
  let start = now();
  while (latency_s.length < FEWEST_SAMPLES || latency_s.length * runs_per_sample < job.runs || now() - start < job.seconds) {
    const taken = await batch(runs_per_sample);
    if (taken < SAMPLE_S) { // it has become faster since: all batches are to be alike, and long enough
      runs_per_sample = Math.ceil((1.2 * runs_per_sample * SAMPLE_S) / Math.max(taken, 1e-4));
      latency_s = [];
      start = now();
      continue;
    }
    latency_s.push(taken / runs_per_sample);
  }
  return {
    latency_s, runs_per_sample, seconds: now() - start, answers, first_inference_s,
    runtime_s: model.runtime_s, session_s: model.session_s,
  };
}

addEventListener("message", async (event) => {
  if (event.origin !== location.origin || event.source !== parent) return;
  try {
    parent.postMessage(await measure(event.data), location.origin);
  } catch (error) {
    parent.postMessage({ error: String(error?.message ?? error).slice(0, 500) }, location.origin);
  }
});
parent.postMessage("ready", location.origin);
