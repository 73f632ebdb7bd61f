// Open: choose a folder, train or index it, and open what was made; other runs and indexes too.

import { get, pause, post, query } from "./api.js";
import { curves, phaseOf } from "./curves.js";
import { counted, h, notice, number, progressBar, say, showFailure, svg } from "./dom.js";
import { lacks, workspace } from "./shared.js";

const LOOK_MS = 1000;

/** The progress in the last line that a command wrote: "packing: 1,200 of 2,000, 300 images/s", "epoch 2/11  loss 0.3". */
export function stageOf(line) {
  const [, sharp, epoch, epochs] = /^(sharp decoder, )?epoch (\d+)\/(\d+)/.exec(line) ?? [];
  if (epochs) return { stage: sharp ? "epochs of the sharp decoder" : "epochs", done: Number(epoch), total: Number(epochs) };
  const [, stage, done, total] = /^([^:]+): ([\d,]+) of ([\d,]+)/.exec(line) ?? [];
  const count = (text) => Number(text.replaceAll(",", ""));
  return total ? { stage, done: count(done), total: count(total) } : { stage: line || "starting", done: 0, total: 0 };
}

function isEpoch(line) {
  return /^(sharp decoder, )?epoch \d/.test(line);
}

/** How a command ended, in words. @param {{failed: boolean, stopped: boolean, ready: boolean}} at */
export function endOf({ failed, stopped, ready }) {
  if (failed) return "failed";
  if (stopped) return ready ? "stopped, and what was learned is kept" : "stopped";
  return "done";
}

/** What a command does, as the title of its progress. @param {{kind: string, updates: boolean, source: string}} at */
export function titleOf({ kind, updates, source }) {
  if (kind === "train") return `Training on ${source}`;
  return updates ? `Updating the index of ${source}` : `Indexing ${source}`;
}

/** What an update changed, in words; empty if it is not known.
 * @param {{encoded: number, kept: number, removed: number} | null} changes @returns {string} */
export function changed(changes) {
  if (!changes) return "";
  const { encoded, kept, removed } = changes;
  return `${counted(encoded, "new picture")}, ${number(kept)} as before, ${number(removed)} no longer there. Tags and decisions are kept.`;
}

function folderIcon() {
  return svg("svg", { viewBox: "0 0 20 16", width: 20, height: 16, "aria-hidden": "true", class: "folder-icon" }, svg("path", { d: "M1 3a2 2 0 0 1 2-2h4l2 2h8a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2H3a2 2 0 0 1-2-2z" }));
}

export function mount(root) {
  const lacking = lacks("start");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }
  const doing = h("div");
  const place = h("div", { class: "start" });
  root.append(h("p", { class: "lead" }, "Choose a folder of pictures on this machine, or open what was made of one before. Nothing leaves the machine."), doing, place);
  let isShown = false;
  let watching = null;

  async function go(folder) {
    const found = await get(`/api/start?${query({ folder })}`);
    const into = (name) => go(found.folder ? `${found.folder}/${name}` : name).catch((err) => showFailure(err, place));
    const parts = found.folder ? found.folder.split("/") : [];
    const crumbs = h(
      "nav",
      { "aria-label": "Folder", class: "crumbs" },
      [["", found.root], ...parts.map((name, at) => [parts.slice(0, at + 1).join("/"), name])].map(([path, name]) =>
        h("button", { type: "button", class: "small", onclick: () => go(path).catch((err) => showFailure(err, place)) }, name),
      ),
    );
    const count = found.is_all ? number(found.images) : `more than ${number(found.images)}`;
    const begin = (kind) => async () => {
      watch(await post(`/api/start/${kind}`, { folder: found.folder }));
    };
    const button = (text, act, more = {}) => h("button", { type: "button", onclick: () => act().catch((err) => showFailure(err)), ...more }, text);
    const few = found.images < 2;
    place.replaceChildren(
      h(
        "section",
        { "aria-label": "Folders" },
        h("h2", {}, "Pictures"),
        crumbs,
        h("ul", { class: "folders" }, found.folders.map((name) => h("li", {}, h("button", { type: "button", title: name, onclick: () => into(name) }, folderIcon(), h("span", {}, name))))),
        h("p", { class: "verdict" }, `${count} ${found.images === 1 ? "picture" : "pictures"} in this folder and those inside it.`),
        found.images ? h("img", { class: "sample", src: `/api/start/sample?${query({ folder: found.folder })}`, alt: "some of the pictures", height: 160 }) : "",
        h(
          "div",
          { class: "actions" },
          button("Browse and search them", begin("index"), { class: "primary", disabled: few }),
          button("Train a model on them", begin("train"), { disabled: few || found.images < 8 }),
        ),
        found.index ? h("p", { class: "hint" }, `${found.index} is an index of this folder: it is updated with what is new, and keeps its tags and decisions.`) : "",
        h("p", { class: "hint" }, "Browsing, search, map, copies and outliers need no training: about a minute for 2,000 pictures. A model takes minutes to hours; it can be stopped at any time and kept."),
      ),
      h(
        "section",
        { "aria-label": "Made before" },
        h("h2", {}, "Made before"),
        found.made.length ? "" : h("p", { class: "hint" }, "No model and no index yet."),
        h(
          "ul",
          { class: "made" },
          found.made.map(({ path, kind, training }) => h("li", {}, h("span", {}, path), h("span", { class: "hint" }, training ? "training now" : kind === "run" ? "model" : "index"), button("Open", () => open(path), { class: "small" }))),
        ),
      ),
    );
  }

  async function open(folder) {
    await post("/api/start/open", { folder });
    location.hash = "#overview";
    location.reload();
  }

  /** Show how far a command is, until it ends. */
  async function watch(first) {
    watching?.abort();
    const mine = (watching = new AbortController());
    let epochs = -1;
    let isStopping = false;
    const stop = async () => {
      isStopping = true; // again, and it would be ended before it has kept anything
      actions.replaceChildren();
      title.textContent = first.kind === "train" ? "Keeping what was learned" : "Stopping";
      await post("/api/start/work/stop");
    };
    const bar = progressBar("starting");
    const line = h("p", { class: "hint" });
    const pictures = h("div", { class: "preview" });
    const charts = h("div", { class: "charts" });
    const actions = h("div", { class: "actions" });
    const title = h("h2", {});
    doing.replaceChildren(h("section", { class: "doing", "aria-label": "Running" }, title, bar, line, actions, pictures, charts));
    for (let at = first; !mine.signal.aborted; at = await get("/api/start/work", mine.signal)) {
      if (!at.running || !isStopping) title.textContent = `${titleOf(at)}${at.running ? "" : `: ${endOf(at)}`}`;
      const records = at.records ?? [];
      bar.hidden = !at.running;
      // Not the line that tells what Ctrl-C does: here it is a button. Lines are seldom; each epoch has a record.
      if (isEpoch(at.line) && records.length) bar.update(phaseOf(records, at.epochs, at.all_epochs));
      else if (!at.line.startsWith("time:")) bar.update(stageOf(at.line));
      // An index that is done needs no words: its last line has the path and how codes are compared.
      const isSaid = !at.running && (at.kind === "train" || at.failed || at.stopped);
      line.textContent = isSaid ? at.line.replace(/^quality: +/, "") : changed(at.changes);
      actions.replaceChildren(
        ...(at.running && !isStopping ? [h("button", { type: "button", onclick: () => stop().catch((err) => showFailure(err)) }, at.kind === "train" ? "Stop and keep" : "Stop")] : []),
        ...(at.ready && !at.running ? [h("button", { type: "button", class: "primary", onclick: () => open(at.out).catch((err) => showFailure(err)) }, "Open")] : []),
      );
      if (records.length && records.length !== epochs && at.ready) {
        epochs = records.length;
        const { stage: of, done } = phaseOf(records, at.epochs, at.all_epochs);
        pictures.replaceChildren(h("h3", {}, `Held-out pictures after ${number(done)} ${of}`), h("img", { src: `/api/start/preview?epoch=${epochs}`, alt: "held-out pictures before and after" }));
        charts.replaceChildren(...curves(records, at.epochs).slice(0, 2));
      }
      if (!at.running && first.running && at.ready && at.kind === "index" && !workspace.images) {
        say("Opening it…"); // there is nothing else that a person could be looking at
        await open(at.out);
      }
      if (!at.running) break;
      await pause(LOOK_MS);
      if (!isShown) break;
    }
  }

  return {
    async show() {
      isShown = true;
      try {
        const at = await get("/api/start/work");
        if (at.kind) watch(at).catch((err) => err.name !== "AbortError" && showFailure(err, doing));
        if (!place.childElementCount) {
          place.replaceChildren(h("p", { class: "hint" }, "Looking into the folder…"));
          await go("");
        }
      } catch (err) {
        showFailure(err, place);
      }
    },
    hide: () => (isShown = false),
  };
}
