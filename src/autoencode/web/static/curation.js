// What a person says about the picture in the window: selected or not, its tags, keep or drop.

import { get, post, postBytes } from "./api.js";
import { h, keepingFocus, say, showFailure } from "./dom.js";
import { Selection, selection } from "./selection.js";
import { positionOf, told, undo } from "./selectionbar.js";
import { lacks, workspace } from "./shared.js";

const DECIDED = { keep: "kept", drop: "marked to drop" };

/** The selection that holds one picture alone, by the hash that the server knows it by. */
async function alone(position) {
  const one = new Selection();
  one.add([position]);
  return (await postBytes("/api/selections", one.bits(workspace.images))).selection;
}

/**
 * The controls for one picture; null for one that is not under review.
 * @param {{id: string}} picture
 * @returns {{element: HTMLElement, refresh: () => Promise<void>, key: (name: string) => boolean} | null}
 */
export function curation(picture) {
  const position = positionOf(picture.id);
  if (position < 0 || lacks("browse")) return null;
  const run = (work) => work().catch((err) => showFailure(err));
  const press = (text, key, work, more = {}) => h("button", { type: "button", class: "small", title: `Key: ${key}`, onclick: () => run(work), ...more }, text);

  const mark = async () => {
    selection.toggle(position);
    show();
  };
  const decide = async (decision) => {
    await post("/api/decisions", { picture: picture.id, decision });
    say(`This picture is ${DECIDED[decision]}.`);
    told();
  };
  const give = async (tag, on) => {
    if (!tag) return;
    await post("/api/tags", { selection: await alone(position), tag, on });
    input.value = "";
    told();
  };

  const select = press("Select", "Space", mark);
  const choices = { keep: press("Keep", "K", () => decide("keep"), { class: "small keep" }), drop: press("Drop", "D", () => decide("drop"), { class: "small drop" }) };
  const chips = h("span", { class: "chips" });
  const input = h("input", { type: "text", maxlength: 60, placeholder: "tag", "aria-label": "Tag this picture", list: "known-tags", size: 8 });
  input.addEventListener("keydown", (event) => event.key === "Enter" && run(() => give(input.value.trim(), true)));
  const element = h(
    "div",
    { class: "curation", role: "group", "aria-label": "This picture" },
    h("span", { class: "together decide" }, select, choices.keep, choices.drop, press("Undo", "U", undo)),
    h("span", { class: "together" }, input, press("Tag", "T", () => give(input.value.trim(), true))),
    chips,
  );

  /** @param {{tags?: string[], decision?: string | null}} about */
  function show(about = null) {
    const isChosen = selection.has(position);
    select.textContent = isChosen ? "✓ Selected" : "Select";
    select.setAttribute("aria-pressed", String(isChosen));
    if (!about) return;
    for (const [name, button] of Object.entries(choices)) button.setAttribute("aria-pressed", String(about.decision === name));
    keepingFocus(chips, () => chips.replaceChildren(
      ...(about.tags ?? []).map((name) => h("button", { type: "button", class: "small chip", "data-focus": name, "aria-label": `Take away the tag ${name}`, title: "Take away", onclick: () => run(() => give(name, false)) }, name, h("span", { "aria-hidden": "true" }, " ×"))),
    ), () => input);
  }

  show();
  return {
    element,
    refresh: async () => show(await get(`/api/pictures/${picture.id}`)),
    key(name) {
      const work = { " ": mark, k: () => decide("keep"), d: () => decide("drop"), u: undo, t: async () => input.focus() }[name];
      if (work) run(work);
      return Boolean(work);
    },
  };
}
