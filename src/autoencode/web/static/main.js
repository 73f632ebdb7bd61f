// The shell: shows one tab at a time, the one that the address names after "#".

import { parsed, windowOf, withWindow } from "./address.js";
import { get, setLaunch } from "./api.js";
import { h, hush, isTyping, modal, notice, say, showFailure } from "./dom.js";
import { describe, openPicture, takePictures } from "./pictures.js";
import { addSelectionBar } from "./selectionbar.js";
import { lacks, setShared } from "./shared.js";
import { nextTheme, showTheme, themeName } from "./theme.js";

const TABS = {}; // by name, as the server lists them: the title, and what the tab's script exports
const shown = {};
const MODELS = ["morph", "sliders", "generate"]; // tabs that look dimmed until there is a model
let first = "overview"; // the tab of an address that names none
let current = null;

function buildTabs() {
  const nav = document.getElementById("tabs");
  for (const [name, tab] of Object.entries(TABS)) {
    const needsModel = MODELS.includes(name) && lacks(name);
    nav.append(h("a", { href: `./#${name}`, id: `to-${name}`, class: needsModel && "lacking", title: needsModel && "Needs a model of your pictures" }, tab.title));
  }
  // On a phone the bar fades out where there is more of it.
  const fade = () => nav.classList.toggle("more", nav.scrollLeft + nav.clientWidth < nav.scrollWidth - 4);
  nav.addEventListener("scroll", fade);
  new ResizeObserver(() => {
    showLink();
    fade();
  }).observe(nav);
  const icon = (text, label, onclick) => h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick }, text);
  const turn = icon("◐", "", () => {
    nextTheme();
    name();
    say(`Colours: ${themeName()}.`);
  });
  const name = () => {
    turn.title = `Colours: ${themeName()}`;
    turn.setAttribute("aria-label", `Colours: ${themeName()}. Change`);
  };
  name();
  document.getElementById("shell").append(icon("?", "Keys", showKeys), turn);
}

const EVERYWHERE = [["?", "these keys"], ["Tab, arrows", "through controls, and inside a grid of pictures"], ["in the window of a picture: ← →", "previous and next picture"], ["+ − 0", "zoom in, out, fit"], ["M", "the model's view"], ["Space, K, D, T, U", "select, keep, drop, tag it; undo"], ["Escape", "close"]];

/** A window with the keys of the open tab and of all tabs. */
function showKeys() {
  const table = (keys) => h("dl", { class: "keys-table" }, keys.flatMap(([key, means]) => [h("dt", {}, key), h("dd", {}, means)]));
  const own = shown[current]?.help ?? [];
  modal("Keys", own.length ? h("h3", {}, TABS[current].title) : "", own.length ? table(own) : "", h("h3", {}, "Everywhere"), table(EVERYWHERE));
}

function open() {
  const { tab, params } = parsed(location.hash);
  if (tab === "main" && current) return; // the link that skips to the content
  const chosen = Object.hasOwn(TABS, tab) ? tab : first;
  if (current && current !== chosen) hush();
  if (tab && tab !== chosen && tab !== "main") say(`There is no tab “${tab.slice(0, 40)}”.`);
  // Focus stays on a link of the tab bar that was pressed; from anywhere else it moves to the heading of the new tab.
  const isLed = current && current !== chosen && !document.getElementById("tabs").contains(document.activeElement);
  if (current && current !== chosen) {
    shown[current].root.hidden = true;
    shown[current].hide?.();
  }
  const isNew = !shown[chosen];
  if (isNew) {
    const root = h("section", { id: `tab-${chosen}`, "aria-labelledby": `title-${chosen}` });
    root.append(h("h1", { id: `title-${chosen}`, tabindex: "-1" }, TABS[chosen].title));
    document.getElementById("main").append(root);
    shown[chosen] = { root, ...TABS[chosen].mount(root) };
  }
  const isAnother = current !== chosen;
  current = chosen;
  document.body.dataset.tab = chosen;
  dispatchEvent(new Event("tab"));
  shown[chosen].root.hidden = false;
  shown[chosen].show?.(params);
  for (const link of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("#tabs a"))) {
    if (link.id === `to-${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showLink();
  if (isLed) document.getElementById(`title-${chosen}`).focus({ preventScroll: true });
  document.title = `${TABS[chosen].title} · ${document.getElementById("name").textContent}`;
  if (isAnother) scrollTo(0, 0);
}

/** Show what the address names now; where only the window over the tab came or went, the tab stays as it is. */
function follow({ oldURL }) {
  const before = oldURL && new URL(oldURL).hash;
  if (!before || withWindow(before, null) !== withWindow(location.hash, null)) open();
  showWindow().catch((err) => {
    history.replaceState(history.state, "", withWindow(location.hash, null));
    showFailure(err);
  });
}

/** Open the window of a picture that the address names: after a reload, from a bookmark, by the Forward key. */
async function showWindow() {
  const id = windowOf(location.hash);
  if (!id || document.querySelector("dialog.viewer")) return;
  const around = await shown[current].around?.(id);
  const picture = around ? around.list.find((one) => one.id === id) : await describe(id);
  if (windowOf(location.hash) === id) openPicture(picture, around?.list, around?.rest);
}

/** Scroll the bar to the link of the open tab. */
function showLink() {
  const nav = document.getElementById("tabs");
  /** @type {HTMLElement | null} */
  const link = nav.querySelector("[aria-current]");
  // Not scrollIntoView: browsers would then continue the Tab key from this link, past the link to the content.
  if (link) nav.scrollLeft = link.offsetLeft - nav.offsetLeft - (nav.clientWidth - link.clientWidth) / 2;
}

function listenForImages() {
  // An image dropped or pasted anywhere goes to the open tab, or to Search or Restore if that tab takes none.
  const give = (files) => {
    const given = [...files];
    if (!given.length) return;
    const take = shown[current]?.take;
    if (take) takePictures(given, take);
    else takePictures(given, ([first]) => (location.hash = `#${lacks("search") ? "restore" : "search"}?picture=${first.id}`));
  };
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) give(event.dataTransfer.files);
    else say("That is not a file. Save the image, then drop the file here: the page downloads nothing.");
  });
  addEventListener("paste", (event) => give(event.clipboardData.files));
  addEventListener("keydown", (event) => {
    if (event.key === "?" && !isTyping(event)) showKeys();
    else shown[current]?.key?.(event);
  });
}

async function start() {
  showTheme();
  // The token came with the address and is in a cookie now; history and bookmarks must not keep it.
  history.replaceState(history.state, "", location.pathname + location.hash);
  try {
    const workspace = await get("/api/workspace");
    setLaunch(workspace.launch);
    setShared(workspace);
    const scripts = await Promise.all(workspace.tabs.map(({ name }) => import(`./${name}.js`)));
    workspace.tabs.forEach(({ name, title }, at) => (TABS[name] = { ...scripts[at], title }));
    document.getElementById("name").textContent = workspace.name;
    if (!workspace.images && !workspace.kind) first = "start";
    document.documentElement.classList.toggle("tiny-images", Math.max(workspace.height, workspace.width) <= 48);
  } catch (err) {
    document.getElementById("main").append(notice(err));
    return;
  }
  buildTabs();
  if (!lacks("browse")) addSelectionBar();
  listenForImages();
  addEventListener("hashchange", follow);
  addEventListener("unhandledrejection", (event) => {
    if (event.reason?.name === "AbortError" || event.reason?.status !== undefined) event.preventDefault();
    if (event.reason?.status !== undefined) say(event.reason.message);
  });
  open();
  follow({ oldURL: location.href });
}

start();
