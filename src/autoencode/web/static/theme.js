// Light or dark: as the system has it, or as a person chose here.

const system = matchMedia("(prefers-color-scheme: dark)");
const NAMES = { "": "as the system", light: "light", dark: "dark" };

/** Whether the page is dark now. */
export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : system.matches;
}

/** What the page is set to: "light", "dark", or "" for the system's. */
export function theme() {
  return localStorage.getItem("theme") ?? "";
}

export function themeName() {
  return NAMES[theme()];
}

/** What follows a setting: first the one that looks different from the system's, then that, then the system's again.
 * @param {string} chosen @param {boolean} isSystemDark @returns {string} */
export function following(chosen, isSystemDark) {
  const [other, same] = isSystemDark ? ["light", "dark"] : ["dark", "light"];
  return { "": other, [other]: same }[chosen] ?? "";
}

/** Go on to the next of the three; what is drawn by hand hears "theme". */
export function nextTheme() {
  localStorage.setItem("theme", following(theme(), system.matches));
  showTheme();
}

export function showTheme() {
  if (theme()) document.documentElement.dataset.theme = theme();
  else delete document.documentElement.dataset.theme;
  dispatchEvent(new Event("theme"));
}

system.addEventListener("change", () => dispatchEvent(new Event("theme")));
