// The addresses of Outliers: what one asks for, and links to lists of what was decided; and its keys.

import { asked, between } from "./address.js";
import { query } from "./api.js";
import { h } from "./dom.js";
import { workspace } from "./shared.js";

/** What an address asks for: what is compared, the default where it names none that there is, and the threshold. */
export function wanted({ tab, params }) {
  const allowed = { by: workspace.bases.map(([name]) => name), threshold: between(-Infinity, Infinity) };
  const { state, wrong } = asked(tab === "outliers" ? params : new URLSearchParams(), { by: "", threshold: "" }, allowed);
  return { by: state.by || workspace.bases[0]?.[0], dragged: state.by && state.threshold ? Number(state.threshold) : null, wrong };
}

/** Links to what was decided: all as a table, and the files that were dropped or kept. */
export function decisionLists(by) {
  const link = (href, name, text, decision) => h("a", { class: "button", href, download: name, "data-decision": decision }, text);
  return h(
    "div",
    { class: "actions" },
    link(`/api/outliers.csv?${query({ by })}`, "outliers.csv", "Save all as CSV"),
    link("/api/decisions/drop.txt", "drop.txt", "List of dropped files", "drop"),
    link("/api/decisions/keep.txt", "keep.txt", "List of kept files", "keep"),
  );
}

export function keysHelp() {
  return h(
    "p",
    { class: "hint" },
    "Keys: K keep, D drop, U undo, N next, P back, H heat-map. The lists have one path per line, for a script that moves " +
      "or copies those files.",
  );
}
