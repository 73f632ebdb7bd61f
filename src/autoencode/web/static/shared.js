// State that several tabs share: the workspace, and the pictures of the morph.

export let workspace = null;

export function setShared(value) {
  workspace = value;
}

/** What is missing for a function of the page, the commands that make it, and whether the page does; null if nothing is. */
export function lacks(what) {
  const need = workspace.needs[what];
  return need ? { message: need.error, commands: need.commands, isInPage: need.in_page && !workspace.needs.start } : null;
}

export const MORPH_MOST = 4;
export const morphing = [];

export function hasImages() {
  return workspace.images > 0;
}

export function canGenerate() {
  return !lacks("generate");
}
