// The state of a tab in the address: "#browse?label=tulip&sort=size". Values that are the default are left out.

/** @typedef {Record<string, string>} State */

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

/** Put the state of a tab into the address; the Back key of the browser skips it.
 * @param {string} tab @param {State} state @param {State} defaults */
export function remember(tab, state, defaults = {}) {
  const hash = written(tab, state, defaults);
  if (location.hash !== hash) history.replaceState(history.state, "", hash);
}
