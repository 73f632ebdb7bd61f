// Requests to the server of the page.

let launch = "";

/** Part of the address of every picture, so that the browser's cache serves none of another launch. */
export function setLaunch(value) {
  launch = value;
}

/** An error message for a person; `commands` are shell commands that fix it. */
export class Failure extends Error {
  constructor(text, status = 0, commands = []) {
    super(text);
    this.status = status;
    this.commands = commands;
    this.retryAfter = 1; // seconds
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (err) {
    if (err.name === "AbortError") throw err;
    throw new Failure("The server does not answer. If it was stopped, start “autoencode app” again and open the address that it prints.");
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

/** Null if nothing has changed. */
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

export async function postBytes(path, bytes) {
  return (await ask(path, { method: "POST", body: bytes })).json();
}

/** Send one file; wait while the server's upload rate is exceeded, calling `onWait` first. */
export async function upload(file, mostBytes, onWait = () => {}) {
  // Browsers know no type for some image formats, so a file without a type is sent.
  if (file.type && !file.type.startsWith("image/")) throw new Failure(`${file.name} is not an image.`);
  if (file.size > mostBytes) {
    const limit = Math.round(mostBytes / 1024 ** 2);
    throw new Failure(`${file.name} is larger than the limit of ${limit} MB. Make it smaller first.`);
  }
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Failure(`${file.name} cannot be read. Choose the files in a folder, not the folder.`);
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

/** Ask until the job behind an address is done, passing its progress on. */
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

/** Where a picture differs from normal ones, to lay over it; `by` is what they are. */
export function heatUrl(id, by) {
  return `/images/${id}/heat?${query({ by, v: launch })}`;
}

/** A picture as its file has it, with a longest side of about `side` pixels. */
export function originalUrl(id, side) {
  return `/images/${id}/original?side=${side}&v=${launch}`;
}

export function sheetUrl(letter, positions, side) {
  return `/sheets/${letter}?positions=${positions.join(",")}&side=${side}&v=${launch}`;
}

export function query(values) {
  const known = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return new URLSearchParams(known).toString();
}

/**
 * Run work one call at a time; of the calls made meanwhile only the newest is kept and run next. `cancel` drops it and
 * stops the running one.
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
        // A failure is not reported while a newer call waits.
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

/** Run work at once; a newer call aborts the older one. */
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
