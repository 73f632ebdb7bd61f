// What several tabs know: the workspace, and pictures on their way from one tab to another.

export let workspace = null;

export function setShared(value) {
  workspace = value;
}

export const MORPH_MOST = 4;
export const morphing = [];

export function hasImages() {
  return workspace.images > 0;
}

export function canGenerate() {
  return workspace.priors.length > 0;
}
