// Duplicates: groups of copies side by side, and which of each stays. Nothing is deleted: the rest is selected or listed.

import { asked, remember } from "./address.js";
import { get, originalUrl, post, query, waitFor } from "./api.js";
import { field, h, notice, number, progressBar, say, sayIgnored, select, showFailure } from "./dom.js";
import { openPicture, original, shortName } from "./pictures.js";
import { order, selection } from "./selection.js";
import { lacks, workspace } from "./shared.js";
import { bytes } from "./viewer.js";

const PAGE = 50;
const MOST_BY_ITSELF = 5000; // pictures among which one need not be asked to look: some minutes
const TAKES = "Takes a minute or two for some thousand pictures. The page stays usable meanwhile, and what was found is kept.";
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
  const list = h("div", { class: "copies" });
  const summary = h("p", { class: "verdict" });
  const more = h("button", { type: "button", hidden: true, onclick: () => load(list.childElementCount).catch((err) => showFailure(err)) }, "Show more groups");
  const possible = h("div", { class: "copies" });
  let others = [];
  root.append(body);

  const rule = select(RULES, state.keep, (keep) => {
    state.keep = keep;
    remember("duplicates", state, { keep: "largest" });
    load(0).catch((err) => showFailure(err));
  });

  function begin() {
    body.replaceChildren(
      h("button", { type: "button", class: "primary", onclick: start }, "Look for copies"),
      h("p", { class: "hint" }, TAKES),
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
    body.replaceChildren(bar, h("p", { class: "hint" }, TAKES));
    try {
      await waitFor(`/api/duplicates?${query({ ...state, limit: 1 })}`, bar.update, aborted.signal);
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

  const download = h("a", { class: "button", download: "copies.txt" }, "List of the others");

  async function load(offset) {
    const found = await get(`/api/duplicates?${query({ ...state, offset, limit: PAGE })}`);
    download.href = `/api/duplicates.txt?${query(state)}`;
    if (!offset) {
      others = found.others;
      list.replaceChildren();
      summary.textContent = found.total
        ? `${number(found.total)} groups: ${number(found.redundant)} of ${number(found.images)} files could go, ${bytes(found.bytes)}.`
        : `No copies among ${number(found.images)} files.`;
      possible.replaceChildren(
        ...(found.possible.length
          ? [h("h2", {}, "Perhaps copies"), h("p", { class: "hint" }, "These agree as far as different pictures of this folder do, too. Look at them."), ...found.possible.map((pair) => group(pair))]
          : []),
      );
    }
    list.append(...found.groups.map((files) => group(files)));
    more.hidden = list.childElementCount >= found.total;
  }

  function selectOthers() {
    Object.assign(order, { sort: "name", down: "" });
    selection.replace(others);
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
  };
}

/** One group: its files, the one that stays first, each with what was done to it. */
function group(files) {
  const first = files[0];
  return h("div", { role: "group", class: files.length > 2 ? "copy-group many" : "copy-group", "aria-label": shortName(first) }, files.map((file) => copy(file, first, files)));
}

function copy(file, first, files) {
  const facts = [
    file.width && `${number(file.width)} × ${number(file.height)}`,
    file.bytes && bytes(file.bytes),
    file.time && new Date(1000 * file.time).toLocaleDateString("en-GB", { dateStyle: "medium" }),
  ].filter(Boolean);
  const frame = h("button", { type: "button", class: "picture", "data-picture": file.id, title: file.name, onclick: () => openPicture(file, files) }, original(file, 280));
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
        file.stays ? h("span", { class: "mark keep" }, "stays") : null,
        (file.kinds ?? []).map((kind) => h("span", { class: "mark" }, kind)),
        isOther ? h("button", { type: "button", class: "small", onclick: () => compare(first, file) }, "Difference") : null,
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
  const close = h("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  const dialog = h(
    "dialog",
    { class: "compare", "aria-labelledby": "compare-title" },
    h("div", { class: "dialog-head" }, h("h2", { id: "compare-title", tabindex: "-1" }, `${shortName(one)} and ${shortName(other)}`), close),
    stack,
    h("div", { class: "row" }, h("div", { class: "switches" }, mode("difference", "Difference"), mode("first", shortName(one)), mode("second", shortName(other))), field("Strength", strength)),
    h("p", { class: "hint" }, "Black where the two are equal. A picture that was cropped, turned or mirrored differs everywhere."),
  );
  dialog.addEventListener("close", () => dialog.remove());
  stack.style.setProperty("--strength", "4");
  document.body.append(dialog);
  dialog.showModal();
}
