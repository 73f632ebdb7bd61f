// Browse: all pictures in a grid that grows as one scrolls; found, filtered, sorted, selected.

import { asked, between, remember } from "./address.js";
import { get, getBuffer, query, restarting } from "./api.js";
import { announce, field, h, isTyping, keepingFocus, notice, number, say, sayIgnored, select, showFailure } from "./dom.js";
import { arrowKeys, rectangle } from "./grid.js";
import { openPicture, pictureButton, shortName, tileControls } from "./pictures.js";
import { KEYS, addCheck, press, selectingKey } from "./selecting.js";
import { order, positionsOf, selection } from "./selection.js";
import { positionOf } from "./selectionbar.js";
import { lacks, workspace } from "./shared.js";

const [PAGE, MOST] = [200, 500]; // pictures that are asked for at once, and that one answer holds
const MOST_LOOKED = 2000; // loaded to find the one whose window an address names
const DEFAULTS = { text: "", label: "", split: "", decision: "", tag: "", unusual: "", gone: "", sort: "name", down: "", selection: "" };
const SORTS = [["name", "name"], ["date", "date"], ["size", "file size"], ["score", "outlier score"], ["shuffled", "at random"]];
const SPLITS = ["train", "validation", "test"].map((name) => [name, name]);
const DECISIONS = [["none", "undecided"], ["keep", "kept"], ["drop", "dropped"]];
const keys = (options) => options.map(([key]) => key);
const ALLOWED = { sort: keys(SORTS), split: keys(SPLITS), decision: keys(DECISIONS), unusual: between(0, 1), gone: ["true"], down: ["true"] };
const MOST_LETTERS = 200; // of a text to find, as the server takes it

/** What the pictures of the grid were found by, in words: part of the names of files that are saved of them.
 * @param {Record<string, string>} state @returns {string} */
export function foundBy({ text, label, split, decision, tag, unusual, gone }) {
  const decided = Object.fromEntries(DECISIONS)[decision];
  return [text, label, split, decided, tag === "-" ? "untagged" : tag, unusual && "unusual", gone && "gone"].filter(Boolean).join(" ");
}

export function mount(root) {
  root.classList.add("wide");
  const lacking = lacks("browse");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }
  const state = { ...DEFAULTS };
  const pictures = []; // those loaded so far, in the order shown
  let total = 0;
  let isStale = false;

  const found = h("p", { class: "hint", role: "status" });
  const grid = h("div", { class: "grid sized selectable" });
  const problem = h("p", { class: "notice warning", role: "status", hidden: true });
  const end = h("div", { class: "end" });
  const text = h("input", {
    type: "search",
    placeholder: "find by name",
    maxlength: MOST_LETTERS,
    "aria-label": "Find by name",
    oninput: () => ask({ text: text.value }),
  });
  const choice = (name, options) => {
    const made = select(options, state[name], (value) => ask({ [name]: value }));
    made.dataset.name = name;
    return made;
  };
  const choices = {
    label: choice("label", [["", "every label"]]),
    split: choice("split", [["", "every part"], ...SPLITS]),
    decision: choice("decision", [["", "all"], ...DECISIONS]),
    tag: choice("tag", [["", "any tag"]]),
    unusual: choice("unusual", [["", "any score"], ...[1, 5, 10, 25].map((percent) => [String(percent / 100), `${percent} % most unusual`])]),
    gone: choice("gone", [["", "all files"], ["true", "files that are gone"]]),
    // Pictures are looked for at the end where they are unusual, large or new.
    sort: select(SORTS, state.sort, (sort) => ask({ sort, down: ["score", "size", "date"].includes(sort) ? "true" : "" })),
  };
  const direction = h("button", { type: "button", class: "icon", onclick: () => ask({ down: state.down ? "" : "true" }) });
  const everything = h("button", { type: "button", class: "small", onclick: () => selectAll().catch((err) => showFailure(err)) }, "Select all");
  const whole = h("button", { type: "button", class: "small", hidden: true, onclick: () => ask({ selection: "" }) }, "Show all pictures");

  root.append(
    h(
      "div",
      { class: "toolbar slim" },
      text,
      choices.label,
      choices.split,
      choices.decision,
      choices.tag,
      choices.unusual,
      choices.gone,
      field("Sort by", h("span", { class: "together" }, choices.sort, direction)),
      tileControls(),
    ),
    problem,
    h("div", { class: "row" }, found, everything, whole, h("p", { class: "hint keys" }, h("span", { class: "before-selecting" }, "Shift, Ctrl or a drawn rectangle selects; ? lists the keys."), h("span", { class: "while-selecting" }, "A press selects now; ⤢ or Enter opens."))),
    grid,
    end,
  );
  choices.sort.dataset.name = "sort";
  choices.label.setAttribute("aria-label", "Label");
  choices.split.setAttribute("aria-label", "Part");
  choices.decision.setAttribute("aria-label", "Decision");
  choices.tag.setAttribute("aria-label", "Tag");
  choices.unusual.setAttribute("aria-label", "Outlier score");
  choices.gone.setAttribute("aria-label", "Files");
  choices.split.hidden = !workspace.kind; // without a training, parts mean nothing

  /** What to do where no picture is found. */
  function nothingFound() {
    const clear = () => ask({ ...DEFAULTS, sort: state.sort, down: state.down });
    return h("p", { class: "verdict" }, "No picture is found by this name and these filters. ", h("button", { type: "button", onclick: clear }, "Clear the filters"));
  }

  const conditions = () => query({ ...state, sort: undefined, down: undefined, selection: undefined });

  const load = restarting(async (signal, isMore, limit = PAGE) => {
    const offset = isMore ? pictures.length : 0;
    let answer;
    try {
      answer = await get(`/api/browse?${query({ ...state, offset, limit })}`, signal);
    } catch (err) {
      if (err.status !== 404 || !state.selection) throw err;
      say("That selection is no longer known; all pictures are shown."); // the page was started again since
      ask({ selection: "" });
      return;
    }
    total = answer.total;
    problem.hidden = !answer.problem;
    problem.textContent = answer.problem;
    if (!isMore) {
      pictures.length = 0;
      showChoices(answer);
    }
    pictures.push(...answer.pictures);
    const tiles = answer.pictures.map(tile);
    if (isMore) grid.append(...tiles);
    else {
      const place = [...grid.children].findIndex((one) => one.contains(document.activeElement));
      keepingFocus(grid, () => grid.replaceChildren(...tiles), () => tiles[Math.min(place, tiles.length - 1)] ?? text);
    }
    found.textContent = `${number(total)} of ${number(workspace.images)} pictures`;
    end.hidden = pictures.length >= total && total > 0;
    end.replaceChildren(...(total ? [] : [nothingFound()]));
    if (!isMore) announce(`${number(total)} pictures.`);
  });
  let loading = Promise.resolve();
  const run = (isMore = false) => (loading = load(isMore).catch((err) => showFailure(err, isMore ? null : grid, () => run(isMore))));

  /** Show tags and decisions anew, without leaving the place that one has scrolled to. */
  async function renew() {
    const [height, place] = [grid.offsetHeight, scrollY];
    grid.style.minHeight = `${height}px`;
    await load(false, Math.min(MOST, Math.max(PAGE, pictures.length)));
    scrollTo(0, place);
    grid.style.minHeight = "";
  }

  function ask(values) {
    Object.assign(state, values);
    remember("browse", state, DEFAULTS);
    showState();
    noteOrder();
    run();
  }

  function noteOrder() {
    Object.assign(order, { sort: state.sort, down: state.down });
    if (!state.selection) order.of = foundBy(state); // the pictures of a selection were found by what was asked for before
  }

  function showState() {
    if (text.value !== state.text) text.value = state.text;
    for (const [name, control] of Object.entries(choices)) control.value = state[name];
    direction.textContent = state.down ? "↓" : "↑";
    direction.setAttribute("aria-label", state.down ? "Last first" : "First first");
    whole.hidden = !state.selection;
  }

  function showChoices({ labels, tags, decisions, scored, missing }) {
    const fill = (control, options) => control.replaceChildren(...options.map(([key, words]) => h("option", { value: key }, words)));
    fill(choices.label, [["", "every label"], ...labels.map((name) => [name, name])]);
    choices.label.hidden = !labels.length;
    fill(choices.tag, [["", "any tag"], ["-", "untagged"], ...Object.entries(tags).map(([name, count]) => [name, `${name} (${number(count)})`])]);
    choices.tag.hidden = !Object.keys(tags).length;
    choices.unusual.hidden = !scored;
    choices.gone.hidden = !missing && !state.gone;
    choices.decision.hidden = !(decisions.keep || decisions.drop);
    Object.assign(choices.sort.querySelector("[value=score]"), { disabled: !scored, textContent: scored ? "outlier score" : "outlier score, once Outliers was open" });
    showState();
  }

  function tile(picture) {
    const made = pictureButton(picture, { list: pictures, caption: shortName(picture), onclick: (event) => press(event, picture.id, shown(), () => openPicture(picture, pictures, rest)) });
    const folder = picture.name.split("/").slice(0, -1).join("/");
    if (folder) made.querySelector(".caption").prepend(h("span", { class: "folder" }, `${folder}/`));
    const marks = [picture.gone && h("span", { class: "mark gone" }, "gone"), picture.decision && h("span", { class: `mark ${picture.decision}` }, picture.decision === "drop" ? "✕" : "✓"), ...(picture.tags ?? []).map((name) => h("span", { class: "mark" }, name))];
    made.append(h("span", { class: "marks" }, marks.filter(Boolean)));
    if (picture.tags?.length || picture.decision || picture.gone) made.title = [picture.name, picture.gone && "its file is gone", picture.decision, ...(picture.tags ?? [])].filter(Boolean).join(", ");
    made.dataset.focus = picture.id;
    addCheck(made);
    return made;
  }

  const shown = () => pictures.map(({ id }) => id);
  const rest = { total: () => total, more: () => load(true) };

  /** The pictures about one that an address names, loaded as far as that; null if it is not among them. */
  async function around(id) {
    await loading;
    while (pictures.length && pictures.length < Math.min(total, MOST_LOOKED) && !pictures.some((one) => one.id === id)) await load(true);
    return pictures.some((one) => one.id === id) ? { list: pictures, rest } : null;
  }

  async function selectAll() {
    const bits = new Uint8Array(await getBuffer(`/api/browse/positions?${conditions()}`));
    const all = positionsOf(bits);
    if (state.selection) return say("These are selected already.");
    selection.add(all);
    return null;
  }

  arrowKeys(grid);
  rectangle(grid, ".picture", (tiles) => selection.add(tiles.map((one) => positionOf(one.dataset.picture)).filter((one) => one >= 0)));
  new IntersectionObserver(([seen]) => seen.isIntersecting && pictures.length && pictures.length < total && run(true), { rootMargin: "800px" }).observe(end);
  addEventListener("curated", () => {
    if (root.hidden) isStale = true;
    else renew().catch((err) => showFailure(err));
  });

  let isLoaded = false;
  return {
    show(params) {
      const { state: given, wrong } = asked(params, DEFAULTS, ALLOWED);
      given.text = given.text.slice(0, MOST_LETTERS);
      sayIgnored(wrong);
      const isNew = params.size > 0 && Object.keys(DEFAULTS).some((name) => given[name] !== state[name]);
      if (isNew) Object.assign(state, given);
      if (!isLoaded || isNew || isStale) run();
      remember("browse", state, DEFAULTS);
      noteOrder();
      isLoaded = true;
      isStale = false;
      showState();
    },
    around,
    key(event) {
      if (isTyping(event) && !(event.key === "a" && (event.ctrlKey || event.metaKey) && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName))) return;
      if (event.key === "a" && (event.ctrlKey || event.metaKey)) selectAll().catch((err) => showFailure(err));
      else if (selectingKey(event, shown)) event.preventDefault();
      else if (event.key === "/") text.focus();
      else return;
      event.preventDefault();
    },
    help: [["arrows", "move"], ["Enter", "open"], ["Ctrl A", "select all"], ...KEYS, ["/", "find by name"]],
  };
}
