// Pictures that are selected where they are shown: by their mark, with Ctrl or Shift, by the space bar.

import { h } from "./dom.js";
import { selection } from "./selection.js";
import { markTile, positionOf } from "./selectionbar.js";

/** Give a picture its mark to select it by, and what opens it while some are selected; its place must be `selectable`. */
export function addCheck(tile) {
  tile.append(h("span", { class: "check", "aria-hidden": "true" }, "✓"), h("span", { class: "look", title: "Open", "aria-hidden": "true" }, "⤢"));
  markTile(tile);
}

/** Select or open a picture that was pressed. @param {string[]} shown the ids of all that are shown, in their order */
export function press(event, id, shown, open) {
  const position = positionOf(id);
  const [isCheck, isLook] = [".check", ".look"].map((part) => event.target.closest?.(part));
  if (event.shiftKey) selection.extend(position, shown.map(positionOf));
  else if (event.ctrlKey || event.metaKey || isCheck || (selection.size && event.detail && !isLook)) selection.toggle(position);
  else open();
}

/** Select the focused picture by the space bar, or nothing by Escape; return whether the key was one of these. */
export function selectingKey(event, shown) {
  const focused = document.activeElement?.closest?.(".selectable .picture");
  if (event.key === " " && focused) {
    const position = positionOf(focused.getAttribute("data-picture"));
    if (event.shiftKey) selection.extend(position, shown().map(positionOf));
    else selection.toggle(position);
  } else if (event.key === "Escape" && selection.size) selection.clear();
  else return false;
  return true;
}

export const KEYS = [["Space", "select"], ["Shift and Space", "select up to here"], ["Escape", "select none"]];
