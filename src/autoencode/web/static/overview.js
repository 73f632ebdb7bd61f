// Overview: the model, its quality, and its training, finished or running.

import { get, getIfNew, pause, query, waitFor } from "./api.js";
import { curves, phaseOf } from "./curves.js";
import { commandLine, duration, h, notice, number, progressBar, showFailure } from "./dom.js";
import { image, openPicture, pictureButton, shortName } from "./pictures.js";
import { lacks, workspace } from "./shared.js";

const [FEWEST_ROWS, MOST_ROWS] = [3, 6]; // of the mosaic
const BESIDE = 440; // pixels of a window that the sentence above it and the cards below take
const LOOK_MS = 1000; // between two requests for the state of a run

export function mount(root) {
  const live = h("p", { class: "live", role: "status", hidden: true });
  const sentence = h("p", { class: "verdict" }, lead());
  const mosaic = h("div", { class: "mosaic" });
  const examples = h("div", { class: "examples" });
  const health = h("div", { class: "cards" });
  const charts = h("div", { class: "charts" });
  const settings = h("div");
  const steps = h("nav", { class: "steps-next", "aria-label": "What to do" });
  const problem = h("p", { class: "notice warning", role: "status", hidden: true });
  root.append(sentence, problem, mosaic, live, examples, steps);
  if (workspace.code_size) root.append(h("h2", {}, "Quality"), health);
  if (workspace.kind) root.append(h("h2", {}, "Training"), charts);
  root.append(settings);
  let gain = null; // against PCA, once it was measured
  let lost = 0; // files that are not there any more
  let known = null; // copies and unusual pictures, as far as anybody looked
  const tell = () => sentence.replaceChildren(lead(gain, known), ...(lost ? [" ", h("a", { href: "#browse?gone=true" }, goneInWords(lost))] : []));
  const knowing = async () => {
    const about = await get("/api/overview");
    known = about.known;
    lost = about.missing;
    tell();
    steps.replaceChildren(...nextSteps(known));
    problem.hidden = !about.problem;
    problem.textContent = about.problem;
    return about;
  };
  const fill = async () => showRest(await knowing(), mosaic, settings);
  fill().catch((err) => showFailure(err, settings));
  const measure = async () => {
    await showHealth(health);
    await showExamples(examples);
    if (lacks("health")) return;
    gain = await waitFor("/api/verdict", () => {});
    tell();
  };
  if (workspace.code_size) measure().catch((err) => showFailure(err, health));
  let following = null;
  let isShown = false;
  const listen = () => {
    if (isShown && !document.hidden && workspace.kind) following ??= follow(live, charts);
    else {
      following?.abort();
      following = null;
    }
  };
  const turn = (shown) => {
    isShown = shown;
    listen();
  };
  document.addEventListener("visibilitychange", listen);
  let isFirst = true;
  return {
    show() {
      turn(true);
      if (!isFirst) knowing().catch((err) => showFailure(err)); // copies may have been found meanwhile
      isFirst = false;
    },
    hide: () => turn(false),
  };
}

/** What there is and what was found, in a few words; `gain` of `found` is the error saved against PCA, as a share. */
function lead(found = null, known = null) {
  const { kind, height, width, code_size, images, index, folder } = workspace;
  const parts = [images ? `${number(images)} pictures${folder ? ` in ${folder}` : ""}.` : "No pictures are open; add your own."];
  if (found?.gain !== null && found?.gain !== undefined) parts.push(gained(found));
  else if (kind && code_size) parts.push(`${kind.startsWith("a") ? "An" : "A"} ${kind} of ${number(code_size)} code dimensions for ${height}×${width} pixels.`);
  else if (kind) parts.push(`A ${kind} for pictures of any size.`);
  if (index) parts.push("They can be searched by what they show.");
  const counts = [counted(known?.copies, "group of copies", "groups of copies"), counted(known?.unusual, "picture that stands out", "pictures that stand out")];
  if (counts.some(Boolean)) parts.push(`${counts.filter(Boolean).join(", ")}.`);
  return parts.join(" ");
}

function gained({ gain, components }) {
  const percent = Math.round(100 * Math.abs(gain));
  if (percent < 3) return `It restores held-out pictures as well as PCA of ${components} components, a method without training.`;
  const more = gain > 0 ? `${percent} % less error than` : `${percent} % more error than`;
  return `It restores held-out pictures with ${more} PCA of ${components} components, the same size.`;
}

/** How many files are gone. @param {number} lost @returns {string} */
export function goneInWords(lost) {
  return `${lost === 1 ? "1 file is" : `${number(lost)} files are`} not there any more.`;
}

/** A number with its noun; null if nobody has counted. */
function counted(count, one, many) {
  return count === null || count === undefined ? null : `${count ? number(count) : "No"} ${count === 1 ? one : many}`;
}

const GROUPS = [
  ["best", "Best", "restored most closely"],
  ["median", "Typical", "half are closer, half are not"],
  ["worst", "Worst", "what they share the model has not learned"],
];

async function showExamples(place) {
  if (lacks("health")) return;
  const bar = progressBar("reconstructing held-out pictures");
  place.replaceChildren(h("h2", {}, "Before and after"), bar);
  const found = await waitFor("/api/examples", bar.update);
  const all = GROUPS.flatMap(([name]) => found[name]);
  bar.remove();
  place.append(
    h("p", { class: "hint" }, "Held-out pictures, which the model never saw, beside what it makes of their code."),
    h(
      "div",
      { class: "groups" },
      GROUPS.map(([name, title, means]) =>
        h(
          "section",
          { "aria-label": title },
          h("h3", {}, `${title}: `, h("span", {}, means)),
          h("div", { class: "grid pairs" }, found[name].map((picture) => pair(picture, all))),
        ),
      ),
    ),
  );
}

async function showHealth(place) {
  const lacking = lacks("health");
  if (lacking) {
    place.replaceChildren(notice(lacking));
    return;
  }
  const bar = progressBar("measuring held-out images");
  place.replaceChildren(bar);
  const found = await waitFor("/api/health", bar.update);
  const cards = found.findings.map(({ name, value, means }) =>
    h("div", { class: "card" }, h("p", { class: "name" }, name), h("p", { class: /\d/.test(value) ? "value" : "value words" }, value), h("p", {}, means)),
  );
  place.replaceChildren(...cards);
  place.after(
    h("p", { class: "hint" }, `Measured on ${number(found.images)} ${found.split} images. `,
      "“autoencode evaluate” measures all of them, with confidence intervals and PCA for comparison."),
    found.warning ? h("p", { class: "notice warning" }, found.warning) : "",
  );
}

/** Links to what one can do with the pictures, with what is known of them already. */
function nextSteps({ copies, unusual }) {
  const steps = [
    ["duplicates", "Find copies", counted(copies, "group found", "groups found") ?? "Files that show the same picture: saved again, resized, cropped or edited"],
    ["outliers", "Find what does not belong", counted(unusual, "picture stands out", "pictures stand out") ?? "Pictures unlike the others, the most unusual first, with the place where they differ"],
    ["map", "See all at once", "Every picture on a map, similar ones together; draw around some to select them"],
    ["browse", "Browse and tag", "Filter, sort, select, tag; save lists, tables and archives"],
  ];
  const restore = ["restore", "Restore a picture", "Noise taken out at its full size, before and after under one line"];
  if (workspace.kind === "restorer") steps.unshift(restore);
  else steps.push(restore);
  if (!workspace.kind && workspace.images) steps.push(["start", "Train a model", "To restore, morph and generate pictures like these"]);
  const lacking = (name) => (name === "outliers" ? lacks("outliers") && lacks("inspection") : lacks(name));
  return steps.filter(([name]) => !lacking(name)).map(([name, title, text]) => h("a", { class: "card", href: `#${name}` }, h("strong", {}, title), h("span", {}, text)));
}

async function showRest(about, mosaic, settings) {
  mosaic.hidden = !about.mosaic.length;
  mosaic.append(...about.mosaic.map((picture) => pictureButton(picture, { list: about.mosaic, size: 120 })));
  // Whole rows only, on a window of any size.
  const trim = () => {
    const columns = getComputedStyle(mosaic).gridTemplateColumns.split(" ").map(Number.parseFloat);
    const rows = Math.max(FEWEST_ROWS, Math.min(MOST_ROWS, Math.floor((innerHeight - BESIDE) / columns[0])));
    for (const [place, tile] of [...mosaic.children].entries()) tile.hidden = place >= rows * columns.length;
  };
  new ResizeObserver(trim).observe(mosaic);
  if (!workspace.kind) return;
  settings.append(h("h2", {}, "Settings"), h("div", { class: "columns" }, table(about.settings), images(about)));
  if (about.command) settings.append(h("p", {}, "Command to repeat this run:"), commandLine(about.command));
}

function pair(picture, list) {
  return h(
    "button",
    { type: "button", class: "picture pair", onclick: () => openPicture(picture, list), title: picture.name },
    image(picture),
    image(picture, "reconstruction", `${shortName(picture)}, reconstruction`),
  );
}

function table(rows) {
  return h(
    "table",
    { class: "settings" },
    rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value))),
  );
}

function images(about) {
  const rows = Object.entries(about.splits).map(([split, count]) => [`${split} images`, number(count)]);
  if (about.folder) rows.unshift(["folder", about.folder]);
  if (about.skipped) rows.push(["skipped", number(about.skipped)]);
  return rows.length ? table(rows) : h("p", { class: "hint" }, "The images it was trained on were not found.");
}

/** Draw the curves, again after each epoch of a running training; abort the returned controller to stop. */
function follow(live, charts) {
  const following = new AbortController();
  const { signal } = following;
  const look = async () => {
    for (let known = ""; !signal.aborted; await pause(LOOK_MS)) {
      try {
        const state = await getIfNew(`/api/run/state?${query({ known })}`, signal);
        if (state) show(state);
        known = state?.tag ?? known;
      } catch (err) {
        if (signal.aborted) return;
        live.hidden = false;
        live.textContent = err.message;
        known = "";
      }
    }
  };
  const show = ({ records, epochs, all_epochs: all, training, seconds_left }) => {
    live.hidden = !training;
    live.textContent = training ? progress(records, phaseOf(records, epochs, all), seconds_left) : "";
    if (records.length) showCurves(charts, curves(records, epochs));
    else {
      const text = training ? "The first epoch is not done yet." : "This model has no log of its training.";
      charts.replaceChildren(h("p", { class: "hint" }, text));
    }
  };
  look();
  return following;
}

/** Show charts; existing ones are updated in place, so that an open table of numbers stays open. */
function showCurves(place, charts) {
  const titles = (list) => [...list].map((chart) => chart.querySelector("figcaption span")?.textContent).join("\n");
  if (titles(place.children) !== titles(charts)) {
    place.replaceChildren(...charts);
    return;
  }
  for (const [index, chart] of charts.entries()) {
    const before = place.children[index];
    for (const part of ["figcaption", "svg", "table"]) before.querySelector(part).replaceWith(chart.querySelector(part));
  }
}

function progress(records, { stage, done, total }, secondsLeft) {
  const last = records.at(-1);
  if (!last) return "Training now: the first epoch.";
  const rate = `${number(last.images_per_second)} images/s`;
  const left = secondsLeft === null ? "" : `, about ${duration(secondsLeft)} left`;
  return `Training now: ${number(done)} of ${number(total)} ${stage}, ${rate}${left}. This page uses the model as it was when the page was opened.`;
}
