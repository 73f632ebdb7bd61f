// What is done with the selection, at the bottom of every tab: tags, decisions, lists, an archive.

import { get, getBuffer, newestWins, post, postBytes, query } from "./api.js";
import { announce, counted, h, number, say, showFailure } from "./dom.js";
import { order, positionsOf, selection } from "./selection.js";
import { workspace } from "./shared.js";

/** Send the selection to the server; return the hash that it is known by there. */
export async function sendSelection() {
  return (await postBytes("/api/selections", selection.bits(workspace.images))).selection;
}

const USING = ["browse", "map", "duplicates", "outliers", "sliders"]; // tabs where pictures are selected, or the selection is used
const KEPT = "selection"; // of a window, with the launch of the server that knows it

/** Keep each change for a reload of this window: the server has the images, the window their hash. */
const keep = newestWins(async () => {
  if (selection.size) sessionStorage.setItem(KEPT, `${workspace.launch} ${await sendSelection()}`);
  else sessionStorage.removeItem(KEPT);
});

/** Select again what was selected before a reload. */
async function recall() {
  const [launch, name] = (sessionStorage.getItem(KEPT) ?? "").split(" ");
  if (launch !== workspace.launch) return; // another page, which may show other images
  const bits = await getBuffer(`/api/selections/${name}`);
  if (!selection.size) selection.add(positionsOf(new Uint8Array(bits)));
}

/** Add the bar to the page; `changed` is called when tags or decisions of the selected images have changed. */
export function addSelectionBar() {
  const count = h("strong", {});
  const tag = h("input", { type: "text", maxlength: 60, placeholder: "tag", "aria-label": "Tag", list: "known-tags", size: 12 });
  const known = h("datalist", { id: "known-tags" });
  const button = (text, onclick, more = {}) => h("button", { type: "button", class: "small", onclick: () => Promise.resolve(onclick()).catch((err) => showFailure(err)), ...more }, text);
  let isGiven = false; // the tag that is written, to the present selection
  const give = async (on) => {
    const name = tag.value.trim();
    if (!name) {
      say("Write a tag first.");
      tag.focus();
      return;
    }
    const { changed, tags } = await post("/api/tags", { selection: await sendSelection(), tag: name, on });
    isGiven = true;
    if (on) order.of = name;
    known.replaceChildren(...Object.keys(tags).map((one) => h("option", { value: one })));
    say(on ? `${number(changed)} tagged “${name}”.` : `“${name}” taken from ${number(changed)}.`);
    told();
  };
  const decide = async (decision) => {
    const { replaced } = await post("/api/selections/decisions", { selection: await sendSelection(), decision });
    say(decided(selection.size, decision, replaced));
    told();
  };
  const file = async (kind) => {
    const name = await sendSelection();
    const { files, missing } = await get(`/api/selections/${name}/files`);
    if (missing) say(gone(missing, files, kind));
    if (missing < files || kind !== "zip") h("a", { href: `/api/selections/${name}/${kind}?${query(order)}`, download: "" }).click();
  };
  tag.addEventListener("input", () => (isGiven = false));
  tag.addEventListener("keydown", (event) => event.key === "Enter" && give(true).catch((err) => showFailure(err)));
  const bar = h(
    "section",
    { class: "selection-bar", "aria-label": "Selection", hidden: true },
    count,
    button("Show", async () => (location.hash = `#browse?${query({ selection: await sendSelection(), sort: order.sort, down: order.down })}`)),
    h("span", { class: "together" }, tag, known, button("Tag", () => give(true)), button("Untag", () => give(false))),
    h("span", { class: "together" }, button("Keep", () => decide("keep")), button("Drop", () => decide("drop"))),
    button("Undo", undo, { title: "Take back the last change of tags or decisions" }),
    h("span", { class: "together" }, button("List", () => file("txt"), { title: "One path per line, for a script" }), button("CSV", () => file("csv")), button("Zip", () => file("zip"), { title: "The files themselves" })),
    button("Clear", () => selection.clear()),
  );
  document.body.append(bar);
  const show = () => {
    const isShown = selection.size > 0 && USING.includes(document.body.dataset.tab);
    bar.hidden = !isShown;
    document.body.classList.toggle("selecting", isShown);
    count.textContent = `${number(selection.size)} selected`;
    for (const tile of document.querySelectorAll("[data-picture]")) markTile(tile);
  };
  selection.addEventListener("change", show);
  addEventListener("tab", show);
  selection.addEventListener("change", () => {
    if (isGiven) tag.value = ""; // it would be given to others by the next press
    isGiven = false;
  });
  selection.addEventListener("change", () => announce(`${number(selection.size)} selected.`));
  const kept = () => keep().catch((err) => showFailure(err));
  recall().catch((err) => showFailure(err)).then(() => {
    selection.addEventListener("change", kept);
    if (selection.size) kept(); // selected while the last selection was asked for
  });
  others.onmessage = () => dispatchEvent(new Event("curated"));
}

/** Take back the last change of tags or decisions, and say which it was. */
export async function undo() {
  const { undone, decided } = await post("/api/undo");
  if (decided) say(`Undone: the decision about ${counted(decided, "picture")}.`);
  else say(undone === null ? "There is nothing to undo." : `Undone: the last change of “${undone}”.`);
  told();
}

/** What was decided about a selection, in words: also how many of its pictures were decided otherwise before.
 * @param {number} pictures @param {string} decision @param {number} replaced @returns {string} */
export function decided(pictures, decision, replaced) {
  const before = replaced ? `, of which ${number(replaced)} ${replaced === 1 ? "was" : "were"} ${decision === "drop" ? "kept" : "to drop"} before; Undo takes it back` : "";
  const list = decision === "drop" ? " Nothing is deleted: “List” saves their paths." : "";
  return `${counted(pictures, "picture")} to ${decision}${before}.${list}`;
}

/** What an archive, a list or a table lacks, in words.
 * @param {number} missing @param {number} files @param {string} kind of what is saved: "zip", "txt" or "csv" @returns {string} */
export function gone(missing, files, kind = "zip") {
  if (kind === "csv") return `${counted(missing, "file")} of ${number(files)} ${missing === 1 ? "is" : "are"} gone: the column “gone” of the table says which.`;
  if (kind === "txt") {
    if (missing === files) return `${files === 1 ? "The file is" : `All ${number(files)} files are`} gone: the list has their last paths.`;
    return `${counted(missing, "file")} of ${number(files)} ${missing === 1 ? "is" : "are"} gone, and left out of the list. “CSV” names ${missing === 1 ? "it" : "them"}.`;
  }
  if (missing === files) return `There is nothing to save: ${files === 1 ? "the file is" : `all ${number(files)} files are`} gone.`;
  return `${counted(missing, "file")} of ${number(files)} ${missing === 1 ? "is" : "are"} gone: missing.txt in the archive names ${missing === 1 ? "it" : "them"}.`;
}

const others = new BroadcastChannel("curated");

/** Let this window and the others know that tags or decisions have changed. */
export function told() {
  others.postMessage("");
  dispatchEvent(new Event("curated"));
}

/** The position among the images under review that an id stands for; -1 for any other picture. */
export function positionOf(id) {
  return id?.[0] === workspace.letter && /^\d+$/.test(id.slice(1)) ? Number(id.slice(1)) : -1;
}

/** Show on a tile whether its picture is selected. */
export function markTile(tile) {
  const position = positionOf(tile.dataset.picture);
  if (position < 0) return;
  tile.classList.toggle("chosen", selection.has(position));
}
