// What several tabs know: the workspace, and pictures on their way from one tab to another.

export let workspace = null;

export function setShared(value) {
  workspace = value;
}

/** What has to be made before something works, and the commands for it; null where it works. */
export function lacks(what) {
  const need = workspace.needs[what];
  return need ? { message: need.error, commands: need.commands } : null;
}

export const MORPH_MOST = 4;
export const morphing = [];

export function hasImages() {
  return workspace.images > 0;
}

export function canGenerate() {
  return !lacks("generate");
}
