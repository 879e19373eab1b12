// Asks for one job after the other, and runs each in a frame of its own: a frame is to a page what a process is to a
// machine. Nothing of a job before is left in it.

const state = document.getElementById("state");
const bar = document.getElementById("bar");
const log = document.getElementById("log");

async function post(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  // 409: nobody waits for it any more, which took too long; the next job may go better.
  if (!answer.ok && answer.status !== 409) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer;
}

function inFrame(job) {
  return new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.title = "one measurement";
    frame.setAttribute("aria-hidden", "true");
    frame.tabIndex = -1;
    const hear = (event) => {
      if (event.source !== frame.contentWindow || event.origin !== location.origin) return;
      if (event.data === "ready") {
        frame.contentWindow.postMessage(job, location.origin);
        return;
      }
      removeEventListener("message", hear);
      frame.remove();
      resolve(event.data);
    };
    addEventListener("message", hear);
    frame.src = "frame";
    document.body.append(frame);
  });
}

async function keepAwake() {
  try {
    await navigator.wakeLock?.request("screen");
  } catch (error) {
    // Not every browser has it, and none grants it to a page that is not in front: the text asks for the same.
    console.debug(`no wake lock: ${error.message}`);
  }
}

async function main() {
  const threads = self.crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
  document.getElementById("threads").textContent = self.crossOriginIsolated
    ? `up to ${threads} threads`
    : "one thread: this address is not cross-origin isolated";
  await keepAwake();
  const hello = await post("hello", {
    user_agent: navigator.userAgent,
    cores: navigator.hardwareConcurrency || 1,
    isolated: self.crossOriginIsolated,
    memory_gib: navigator.deviceMemory ?? null,
  });
  const { page } = await hello.json();
  for (;;) {
    const answer = await fetch(`job?page=${page}`);
    if (answer.status === 204) continue;
    if (!answer.ok) throw new Error(await answer.text());
    const job = await answer.json();
    if (job.end !== undefined) {
      state.textContent = job.end;
      bar.max = bar.value = 1;
      return;
    }
    state.textContent = `${job.done + 1} of ${job.total || "?"}: ${job.title}`;
    if (job.total) {
      bar.max = job.total;
      bar.value = job.done;
    }
    const report = await inFrame(job);
    await post(`report/${job.number}`, report);
    const line = document.createElement("li");
    line.textContent = report.error ? `${job.title}: ${report.error}` : `${job.title}: ${spelled(report.latency_s)}`;
    log.prepend(line);
  }
}

function spelled(latency) {
  const sorted = [...latency].sort((a, b) => a - b);
  return `${(1000 * sorted[sorted.length >> 1]).toPrecision(3)} ms`;
}

main().catch((error) => {
  state.textContent = `This ended: ${error.message}. Load the page again.`;
});
