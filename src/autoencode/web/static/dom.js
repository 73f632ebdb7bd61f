// Elements, and the few components that all tabs share.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: properties beginning with "on" listen, true and false set or leave out, the rest are attributes. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let saying = null; // when the message goes
let said = 0; // when it came

/** Show a message for as long as one reads it; screen readers read it, too. */
export function say(text) {
  const status = document.getElementById("status");
  status.textContent = text;
  status.classList.add("shown");
  clearTimeout(saying);
  said = performance.now();
  saying = setTimeout(() => status.classList.remove("shown"), readingTime(text));
}

/** Milliseconds in which a text is read. @param {string} text @returns {number} */
export function readingTime(text) {
  return Math.min(6000, 1200 + 50 * text.length);
}

/** Take a message away that is about another tab: one that came just now is about the change itself. */
export function hush() {
  if (performance.now() - said > 500) document.getElementById("status").classList.remove("shown");
}

/** Say what of an address means nothing on its tab. @param {string[]} wrong as "sort=bad" */
export function sayIgnored(wrong) {
  if (wrong.length) say(`“${wrong.join("”, “")}” in the address means nothing here; the default is shown.`);
}

/** Announce a change to screen readers alone. */
export function announce(text) {
  document.getElementById("announced").textContent = text;
}

/**
 * Change the content of a place. If the change removes the focused element, the new one of the same `data-focus` is
 * focused, or the one that `otherwise` returns.
 */
export function keepingFocus(place, change, otherwise) {
  const before = place.contains(document.activeElement) ? /** @type {HTMLElement} */ (document.activeElement) : null;
  change();
  if (!before || before.isConnected) return;
  const name = before.dataset.focus;
  const same = name && [...place.querySelectorAll("[data-focus]")].find((element) => element.getAttribute("data-focus") === name);
  (same || otherwise()).focus();
}

/** A failure, or something missing, with the commands that fix it. */
export function notice(failure) {
  return h(
    "div",
    { class: "notice" },
    h("p", {}, failure.message),
    (failure.commands || []).map((line) => commandLine(line)),
    failure.isInPage ? h("p", {}, "Or without a command: ", h("a", { href: "#start" }, "choose the folder here"), ".") : "",
  );
}

export function commandLine(line) {
  const code = h("code", { tabindex: "0" }, line);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(line);
      say("Copied.");
    } catch {
      // Browsers give no clipboard to a page of another machine without HTTPS, and a person can deny it.
      getSelection().selectAllChildren(code);
      say("Selected. Copy it with Ctrl-C.");
    }
  };
  return h(
    "p",
    { class: "command" },
    code,
    h("button", { type: "button", class: "small", onclick: copy, "aria-label": `Copy: ${line}` }, "Copy"),
  );
}

/** Show a failure in a place of the page, with a button to try `again` if given; without a place, as a message. */
export function showFailure(err, place, again = null) {
  if (err.name === "AbortError") return;
  const button = again && h("button", { type: "button", onclick: again }, "Try again");
  if (place) place.replaceChildren(notice(err), button ?? "");
  else say(err.message);
}

/** A progress bar, with a button to cancel if `oncancel` is given. */
export function progressBar(label, oncancel = null) {
  const bar = h("progress", { "aria-label": label });
  const text = h("span", {}, label);
  const cancel = oncancel && h("button", { type: "button", class: "small cancel", onclick: oncancel }, "Cancel");
  const element = h("div", { class: "progress" }, bar, text, cancel);
  let began = null; // the pace of a stage says nothing of that of the next
  element.update = ({ stage, done, total }) => {
    // The numbers are those of the other work then, which goes on.
    if (cancel) cancel.textContent = stage.startsWith("waiting") ? "Do not wait" : "Cancel";
    const now = performance.now();
    if (began?.stage !== stage) began = { stage, done, time: now };
    if (total) {
      bar.max = total;
      bar.value = done;
      text.textContent = `${stage}: ${number(done)} of ${number(total)}${timeLeft(done - began.done, now - began.time, total - done)}`;
    } else {
      bar.removeAttribute("value");
      text.textContent = stage;
    }
  };
  return element;
}

/** The time that is left of work, in words, once its pace can be told: after 2 s. */
export function timeLeft(done, milliseconds, more) {
  if (milliseconds < 2000 || done <= 0 || more <= 0) return "";
  return `, about ${duration(((more / done) * milliseconds) / 1000)} left`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function number(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A number of things: "1 picture", "2,000 pictures".
 * @param {number} count @param {string} thing @returns {string} */
export function counted(count, thing) {
  return `${number(count)} ${thing}${count === 1 ? "" : "s"}`;
}

export function percent(share, digits = 2) {
  return `${(100 * share).toFixed(digits)} %`;
}

/** Save bytes as a file. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** A labelled control: the label holds it, so that both are one target. */
export function field(label, control, ...more) {
  return h("label", { class: "field" }, h("span", {}, label), control, ...more);
}

export function select(options, value, onchange) {
  const made = h("select", { onchange: () => onchange(made.value) });
  for (const [key, text] of options) made.append(h("option", { value: key, selected: key === value }, text));
  return made;
}

/** Whether a key belongs to a text field or dialog, and not to the tab; sliders take no letters. */
export function isTyping(event) {
  const target = event.target;
  return (
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    Boolean(document.querySelector("dialog[open]")) ||
    /^(TEXTAREA|SELECT)$/.test(target.tagName) ||
    (target.tagName === "INPUT" && !/^(checkbox|radio|file|range)$/.test(target.type))
  );
}

/** Open a window with a title. */
export function modal(title, ...content) {
  const heading = h("h2", { id: "dialog-title", tabindex: "-1" }, title);
  const close = h("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  const dialog = h(
    "dialog",
    { "aria-labelledby": "dialog-title", onclose: () => dialog.remove() },
    h("div", { class: "dialog-head" }, heading, close),
    ...content,
  );
  // A click outside the content reaches the dialog itself, and closes it.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
