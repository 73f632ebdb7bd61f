// The state of a tab in the address: "#browse?label=tulip&sort=size". Values that are the default are left out.

/**
 * @typedef {Record<string, string>} State
 * @typedef {Record<string, string[] | ((value: string) => boolean)>} Allowed values that a name can have, or a test of them
 */

const WINDOW = "open"; // names the picture whose window lies over the tab

/** The tab and its state in a hash.
 * @param {string} hash @returns {{tab: string, params: URLSearchParams}} */
export function parsed(hash) {
  const [tab, text = ""] = hash.replace(/^#/, "").split("?");
  return { tab, params: new URLSearchParams(text) };
}

/** The hash of a tab with a state.
 * @param {string} tab @param {State} state @param {State} defaults @returns {string} */
export function written(tab, state, defaults = {}) {
  const said = Object.entries(state).filter(([name, value]) => value !== "" && value !== undefined && value !== null && String(value) !== String(defaults[name] ?? ""));
  const text = new URLSearchParams(said.map(([name, value]) => [name, String(value)])).toString();
  return text ? `#${tab}?${text}` : `#${tab}`;
}

/** Put the state of a tab into the address; the Back key of the browser skips it. The state of a tab that is not open stays
 * out of it: work may end after another tab was chosen, which the address names before it opens.
 * @param {string} tab @param {State} state @param {State} defaults */
export function remember(tab, state, defaults = {}) {
  const now = parsed(location.hash);
  const chosen = now.tab && now.tab !== "main" ? now.tab : document.body.dataset.tab;
  if (chosen && chosen !== tab) return;
  const hash = written(tab, { ...state, [WINDOW]: now.params.get(WINDOW) ?? "" }, defaults);
  if (location.hash !== hash) history.replaceState(history.state, "", hash);
}

/** The state that an address asks for, and what of it means nothing there: such values stay the default.
 * @param {URLSearchParams} params @param {State} defaults @param {Allowed} allowed
 * @returns {{state: State, wrong: string[]}} */
export function asked(params, defaults, allowed = {}) {
  const state = { ...defaults };
  const wrong = [];
  for (const [name, value] of params) {
    const fits = allowed[name];
    if (!(name in defaults)) continue;
    if (!fits || value === "" || (Array.isArray(fits) ? fits.includes(value) : fits(value))) state[name] = value;
    else wrong.push(`${name}=${value}`);
  }
  return { state, wrong };
}

/** A test whether a text is a number within bounds. @param {number} least @param {number} most */
export function between(least, most) {
  return (/** @type {string} */ text) => text.trim() !== "" && Number(text) >= least && Number(text) <= most;
}

/** The picture whose window a hash names; null without one.
 * @param {string} hash @returns {string | null} */
export function windowOf(hash) {
  return parsed(hash).params.get(WINDOW);
}

/** A hash with the window of a picture, or without any.
 * @param {string} hash @param {string | null} id @returns {string} */
export function withWindow(hash, id) {
  const { tab, params } = parsed(hash);
  return written(tab, { ...Object.fromEntries(params), [WINDOW]: id ?? "" });
}
