// The shell: one tab is shown at a time, named by the part of the address after "#".

import { get, setLaunch } from "/static/api.js";
import { h, notice, say } from "/static/dom.js";
import { takePictures } from "/static/pictures.js";
import { lacks, setShared } from "/static/shared.js";
const TABS = {}; // by name, as the server lists them: the title, and what the tab's script exports
const shown = {};
let current = null;

function buildTabs() {
  const nav = document.getElementById("tabs");
  for (const [name, tab] of Object.entries(TABS)) nav.append(h("a", { href: `#${name}`, id: `to-${name}` }, tab.title));
}

function open() {
  const [name, text = ""] = location.hash.slice(1).split("?");
  if (name === "main" && current) return; // the link that skips to the content
  const chosen = Object.hasOwn(TABS, name) ? name : "overview";
  const params = new URLSearchParams(text);
  // Whoever came by a link of the tabs goes on from there; the keyboard of others goes to the new tab.
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
  shown[chosen].root.hidden = false;
  shown[chosen].show?.(params);
  for (const link of document.querySelectorAll("#tabs a")) {
    if (link.id === `to-${chosen}`) {
      link.setAttribute("aria-current", "page");
      // Not scrollIntoView, which would also make the Tab key go on from here.
      const nav = link.parentElement;
      nav.scrollLeft = link.offsetLeft - nav.offsetLeft - (nav.clientWidth - link.clientWidth) / 2;
    } else link.removeAttribute("aria-current");
  }
  if (isLed) document.getElementById(`title-${chosen}`).focus({ preventScroll: true });
  document.title = `${TABS[chosen].title} · ${document.getElementById("name").textContent}`;
  if (isAnother) scrollTo(0, 0);
}

function listenForImages() {
  // Wherever an image is dropped or pasted, the tab that is open takes it, or else one that can.
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
    else say("That is no file. Save the image, then drop its file here: nothing is fetched by address.");
  });
  addEventListener("paste", (event) => give(event.clipboardData.files));
  addEventListener("keydown", (event) => shown[current]?.key?.(event));
}

async function start() {
  // The key came with the address; from here on a cookie has it.
  history.replaceState(null, "", location.pathname + location.hash);
  try {
    const workspace = await get("/api/workspace");
    setLaunch(workspace.launch);
    setShared(workspace);
    const scripts = await Promise.all(workspace.tabs.map(({ name }) => import(`/static/${name}.js`)));
    workspace.tabs.forEach(({ name, title }, at) => (TABS[name] = { ...scripts[at], title }));
    document.getElementById("name").textContent = workspace.name;
    document.documentElement.classList.toggle("tiny-images", Math.max(workspace.height, workspace.width) <= 48);
  } catch (err) {
    document.getElementById("main").append(notice(err));
    return;
  }
  buildTabs();
  listenForImages();
  addEventListener("hashchange", open);
  addEventListener("unhandledrejection", (event) => {
    if (event.reason?.name === "AbortError" || event.reason?.status !== undefined) event.preventDefault();
    if (event.reason?.status !== undefined) say(event.reason.message);
  });
  open();
}

start();
