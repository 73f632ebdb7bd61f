// Talking to the program behind the page.

let launch = "";

/** Pictures of another start have other addresses, so that none is taken from the browser's memory. */
export function setLaunch(value) {
  launch = value;
}

/** What went wrong, in words for a person; `commands` are what to run about it. */
export class Failure extends Error {
  constructor(text, status = 0, commands = []) {
    super(text);
    this.status = status;
    this.commands = commands;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (err) {
    if (err.name === "AbortError") throw err;
    throw new Failure("The program behind this page does not answer. Is “autoencode app” still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const failure = new Failure(body.error || `Something went wrong (${response.status}).`, response.status, body.commands);
  failure.retryAfter = Number(response.headers.get("Retry-After")) || 1;
  throw failure;
}

export async function get(path, signal) {
  return (await ask(path, { signal })).json();
}

/** Null where the answer is that there is nothing new. */
export async function getIfNew(path, signal) {
  const response = await ask(path, { signal });
  return response.status === 204 ? null : response.json();
}

export async function getBlob(path, signal) {
  return (await ask(path, { signal })).blob();
}

export async function getBuffer(path, signal) {
  return (await ask(path, { signal })).arrayBuffer();
}

function posting(value, signal) {
  return { method: "POST", body: JSON.stringify(value), headers: { "Content-Type": "application/json" }, signal };
}

export async function post(path, value = {}, signal) {
  return (await ask(path, posting(value, signal))).json();
}

export async function postBytesForBlob(path, bytes) {
  return (await ask(path, { method: "POST", body: bytes })).blob();
}

/** Send one file; where there were many before it, wait as long as it takes, telling so. */
export async function upload(file, mostBytes, onWait = () => {}) {
  // A browser knows no type for some images, so that a file without one is tried.
  if (file.type && !file.type.startsWith("image/")) throw new Failure(`${file.name} is no image.`);
  if (file.size > mostBytes) {
    const limit = Math.round(mostBytes / 1024 ** 2);
    throw new Failure(`${file.name} is larger than the limit of ${limit} MB. Make it smaller first.`);
  }
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Failure(`${file.name} cannot be read. A folder is not taken: give the files in it.`);
  }
  const headers = { "X-Name": encodeURIComponent(file.name || "pasted image") };
  for (;;) {
    try {
      return await (await ask("/api/uploads", { method: "POST", body: file, headers })).json();
    } catch (err) {
      if (err.status === 422) throw new Failure(`${file.name || "The image"}: ${err.message}.`, 422);
      if (err.status !== 429) throw err;
      onWait();
      await pause(1000 * err.retryAfter);
    }
  }
}

/** Ask until work is done, telling how far it is in between. */
export async function waitFor(path, onProgress, signal) {
  return (await done(path, onProgress, signal)).json();
}

export async function waitForBlob(path, onProgress, signal) {
  return (await done(path, onProgress, signal)).blob();
}

async function done(path, onProgress, signal) {
  for (;;) {
    const response = await ask(path, { signal });
    if (response.status !== 202) return response;
    onProgress(await response.json());
    await pause(300);
    if (signal?.aborted) throw new DOMException("", "AbortError");
  }
}

export function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

export function imageUrl(id, part = "") {
  return `/images/${id}${part && "/" + part}?v=${launch}`;
}

export function sheetUrl(letter, positions, side) {
  return `/sheets/${letter}?positions=${positions.join(",")}&side=${side}&v=${launch}`;
}

export function query(values) {
  const known = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return new URLSearchParams(known).toString();
}

/**
 * Work of which only the newest order counts: one at a time, and while it runs the last order is remembered and all
 * before it are forgotten. `cancel` forgets that too and stops what runs.
 */
export function newestWins(work) {
  let waiting = null;
  let running = null;
  const order = async (...args) => {
    waiting = args;
    if (running) return;
    while (waiting) {
      const now = waiting;
      waiting = null;
      running = new AbortController();
      try {
        await work(running.signal, ...now);
      } catch (err) {
        // What failed while something newer waits is of no interest.
        if (err.name !== "AbortError" && !waiting) {
          running = null;
          throw err;
        }
      }
    }
    running = null;
  };
  order.cancel = () => {
    waiting = null;
    running?.abort();
  };
  return order;
}

/** Work of which only the newest matters, where the older is stopped at once. */
export function restarting(work) {
  let running = null;
  return async (...args) => {
    running?.abort();
    const mine = (running = new AbortController());
    try {
      await work(mine.signal, ...args);
    } catch (err) {
      if (err.name !== "AbortError" && running === mine) throw err;
    }
  };
}
