// Duplicates: groups of copies side by side, and which of each stays. Nothing is deleted: the rest is selected or listed.

import { asked, remember } from "./address.js";
import { get, originalUrl, post, query, waitFor } from "./api.js";
import { announce, counted, field, h, isTyping, notice, number, progressBar, say, sayIgnored, select, showFailure } from "./dom.js";
import { openPicture, original, shortName } from "./pictures.js";
import { KEYS, addCheck, press, selectingKey } from "./selecting.js";
import { order, selection } from "./selection.js";
import { lacks, workspace } from "./shared.js";
import { turnedLike } from "./turned.js";
import { bytes } from "./viewer.js";

const PAGE = 50;
const MOST_BY_ITSELF = 5000; // pictures among which one need not be asked to look: some minutes
const TAKES = "Takes a minute or two for some thousand pictures. ";
const MEANWHILE = "The page stays usable meanwhile, and what was found is kept.";
const RULES = [["largest", "the largest"], ["oldest", "the oldest"], ["first", "the first by path"]];

export function mount(root) {
  root.append(h("p", { class: "lead" }, "Files that show the same picture: saved again, resized, cropped, mirrored or edited. Nothing is deleted here."));
  const lacking = lacks("duplicates");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }
  const state = { keep: "largest" };
  const body = h("div");
  const list = h("div", { class: "copies selectable" });
  const summary = h("p", { class: "verdict" });
  const more = h("button", { type: "button", hidden: true, onclick: () => load(list.childElementCount).catch((err) => showFailure(err)) }, "Show more groups");
  const possible = h("div", { class: "copies selectable" });
  let others = [];
  let sum = null; // how many groups, files and bytes there are
  root.append(body);

  const rule = select(RULES, state.keep, (keep) => {
    state.keep = keep;
    remember("duplicates", state, { keep: "largest" });
    load(0).catch((err) => showFailure(err));
  });

  function begin() {
    body.replaceChildren(
      h("button", { type: "button", class: "primary", onclick: start }, "Look for copies"),
      h("p", { class: "hint" }, TAKES, MEANWHILE),
    );
  }

  async function start() {
    const stop = async () => {
      aborted.abort();
      await post("/api/duplicates/cancel").catch((err) => showFailure(err));
      begin();
    };
    const aborted = new AbortController();
    const bar = progressBar("reading files", stop);
    const takes = h("span", {}, TAKES);
    body.replaceChildren(bar, h("p", { class: "hint" }, takes, MEANWHILE), identical);
    const follow = (at) => {
      bar.update(at);
      takes.hidden = at.done > 0; // from then on the bar says how long it takes
      showIdentical().catch((err) => showFailure(err, identical));
    };
    try {
      await waitFor(`/api/duplicates?${query({ ...state, limit: 1 })}`, follow, aborted.signal);
      body.replaceChildren(
        h(
          "div",
          { class: "toolbar" },
          field("Of each group keep", rule),
          h("button", { type: "button", class: "primary", onclick: selectOthers }, "Select the others"),
          download,
        ),
        summary,
        list,
        more,
        possible,
      );
      await load(0);
    } catch (err) {
      if (!aborted.signal.aborted) showFailure(err, body, start);
    }
  }

  const identical = h("div", { class: "copies selectable" });

  /** Files with the same bytes, which are known without a look at their pixels, are there to see meanwhile. */
  async function showIdentical() {
    if (identical.childElementCount) return;
    identical.append(h("h2", {}, "Byte for byte the same"));
    const { groups, total } = await get("/api/duplicates/identical");
    if (!total) identical.replaceChildren(h("p", { hidden: true }));
    else identical.append(...groups.map((files) => group(files, shown)), total > groups.length ? h("p", { class: "hint" }, `${number(groups.length)} of ${number(total)} groups`) : "");
  }

  const download = h("a", { class: "button", download: "copies.txt" }, "List of the others");

  async function load(offset) {
    const found = await get(`/api/duplicates?${query({ ...state, offset, limit: PAGE })}`);
    download.href = `/api/duplicates.txt?${query(state)}`;
    if (!offset) {
      list.replaceChildren();
      sum = found;
      tell(found);
      possible.replaceChildren(
        ...(found.possible.length
          ? [h("h2", {}, "Perhaps copies"), h("p", { class: "hint" }, "These agree as far as different pictures of this folder do, too. Look at them."), ...found.possible.map((pair) => group(pair, shown))]
          : []),
      );
    }
    list.append(...found.groups.map((files) => group(files, shown, choose)));
    more.hidden = list.childElementCount >= found.total;
  }

  /** Say how many files could go. */
  function tell(part) {
    others = part.others;
    Object.assign(sum, { redundant: part.redundant, bytes: part.bytes });
    summary.textContent = sum.total
      ? `${counted(sum.total, "group")}: ${number(sum.redundant)} of ${number(sum.images)} files could go, ${bytes(sum.bytes)}.`
      : `No copies among ${number(sum.images)} files.`;
  }

  /** Let a file of a group stay in place of the one that the rule chose, or all of them. */
  async function choose(element, values) {
    const found = await post("/api/duplicates/choices", { ...values, keep: state.keep });
    tell(found);
    const made = group(found.group, shown, choose);
    element.replaceWith(made);
    made.querySelector(`[data-focus="${values.all ? "all" : values.picture}"]`)?.focus();
    announce(summary.textContent);
  }

  const shown = () => [...body.querySelectorAll("[data-picture]")].map((tile) => tile.getAttribute("data-picture"));

  function selectOthers() {
    selection.replace(others);
    Object.assign(order, { sort: "name", down: "", of: "copies" });
    say(`${number(others.length)} files selected. Save their list below, tag or drop them.`);
  }

  begin();
  if (workspace.images <= MOST_BY_ITSELF) start();
  else {
    // Found before, perhaps at an earlier start: there is nothing to wait for.
    get("/api/duplicates/known")
      .then(({ known }) => known && !list.isConnected && start())
      .catch((err) => showFailure(err));
  }
  return {
    show(params) {
      const { state: given, wrong } = asked(params, state, { keep: RULES.map(([name]) => name) });
      sayIgnored(wrong);
      remember("duplicates", given, { keep: "largest" });
      if (given.keep === state.keep) return;
      state.keep = rule.value = given.keep;
      if (list.isConnected) load(0).catch((err) => showFailure(err));
    },
    key(event) {
      if (!isTyping(event) && selectingKey(event, shown)) event.preventDefault();
    },
    help: [["Enter", "open"], ...KEYS],
  };
}

/**
 * One group: its files, the one that stays first, each with what was done to it.
 * @param {any[]} files @param {() => string[]} shown the ids of all pictures that are shown
 * @param {((element: HTMLElement, values: object) => Promise<void>) | null} choose what stays; null for files that may be no copies
 */
function group(files, shown, choose = null) {
  const first = files[0];
  const act = (values) => choose(element, values).catch((err) => showFailure(err));
  const isAll = files.every(({ stays }) => stays);
  const all = choose && h("button", { type: "button", class: "small", "data-focus": "all", "aria-pressed": String(isAll), title: "They are no copies, or both are needed", onclick: () => act({ picture: first.id, all: true, on: !isAll }) }, files.length > 2 ? "Keep all" : "Keep both");
  const element = h(
    "div",
    { role: "group", class: files.length > 2 ? "copy-group many" : "copy-group", "aria-label": shortName(first) },
    files.map((file) => copy(file, first, files, shown, file === first ? all : null, choose && !file.stays ? () => act({ picture: file.id }) : null)),
  );
  return element;
}

function copy(file, first, files, shown, all, keep) {
  const facts = [
    file.width && `${number(file.width)} × ${number(file.height)}`,
    file.bytes && bytes(file.bytes),
    file.time && new Date(1000 * file.time).toLocaleDateString("en-GB", { dateStyle: "medium" }),
  ].filter(Boolean);
  const frame = h("button", { type: "button", class: "picture", "data-picture": file.id, title: file.name, onclick: (event) => press(event, file.id, shown(), () => openPicture(file, files)) }, original(file, 280));
  addCheck(frame);
  const isOther = file !== first;
  return h(
    "figure",
    { class: file.stays ? "copy stays" : "copy" },
    frame,
    h(
      "figcaption",
      {},
      h("span", { class: "name" }, file.name),
      h("span", { class: "hint" }, facts.join(" · ")),
      h(
        "span",
        { class: "kinds" },
        file.stays ? h("span", { class: "mark keep", tabindex: "-1", "data-focus": file.id }, "stays") : null,
        (file.kinds ?? []).map((kind) => h("span", { class: "mark" }, kind)),
        keep && h("button", { type: "button", class: "small", onclick: keep }, "Keep this one"),
        isOther ? h("button", { type: "button", class: "small", onclick: () => compare(first, file) }, "Difference") : null,
        all,
      ),
    ),
  );
}

/** Two pictures over each other: their difference, black where they are equal, or one and then the other. */
export function compare(one, other) {
  const upper = h("img", { src: originalUrl(other.id, 1280), alt: shortName(other), class: "upper" });
  const lower = h("img", {
    src: originalUrl(one.id, 1280),
    alt: shortName(one),
    onload: () => stack.style.setProperty("--ratio", String(lower.naturalWidth / lower.naturalHeight)),
  });
  const stack = h("div", { class: "stack difference" }, lower, upper);
  const strength = h("input", {
    type: "range",
    min: 1,
    max: 12,
    value: 4,
    "aria-label": "Strength of the difference",
    oninput: () => stack.style.setProperty("--strength", strength.value),
  });
  const mode = (name, text) =>
    h("button", {
      type: "button",
      "aria-pressed": String(name === "difference"),
      onclick: (event) => {
        stack.className = `stack ${name}`;
        for (const button of event.currentTarget.parentElement.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      },
    }, text);
  const hint = h("p", { class: "hint" }, "Black where the two are equal. A picture that was cropped differs everywhere.");
  const close = h("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  const dialog = h(
    "dialog",
    { class: "compare", "aria-labelledby": "compare-title" },
    h("div", { class: "dialog-head" }, h("h2", { id: "compare-title", tabindex: "-1" }, `${shortName(one)} and ${shortName(other)}`), close),
    stack,
    h("div", { class: "row" }, h("div", { class: "switches" }, mode("difference", "Difference"), mode("first", shortName(one)), mode("second", shortName(other))), field("Strength", strength)),
    hint,
  );
  let turned = null;
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (turned) URL.revokeObjectURL(turned);
  });
  const turn = async () => {
    await Promise.all([lower.decode(), upper.decode()]);
    turned = await turnedLike(lower, upper);
    if (turned) {
      upper.src = turned;
      hint.textContent = `Black where the two are equal. ${shortName(other)} is shown as ${shortName(one)} lies; a picture that was cropped differs everywhere.`;
    }
  };
  if (other.kinds?.some((kind) => ["mirrored", "rotated"].includes(kind))) turn().catch(() => {}); // a picture that is gone shows nothing
  stack.style.setProperty("--strength", "4");
  document.body.append(dialog);
  dialog.showModal();
}
