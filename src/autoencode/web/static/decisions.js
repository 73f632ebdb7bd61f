// Decisions as a window shows them. Several windows decide at once, and their answers arrive in any order: each has the
// revision of the decisions that it is of, and an older one never replaces a newer one.

/** Take what the server says about a picture; return whether that changes what is shown.
 * @param {any} picture @param {string | null} decision @param {number} revision @returns {boolean} */
export function hear(picture, decision, revision) {
  if (revision < (picture.revision ?? -1)) return false;
  Object.assign(picture, { revision, heard: decision });
  return settle(picture);
}

/** Show a decision while it is being written. @param {any} picture @param {string} decision */
export function propose(picture, decision) {
  picture.writing = (picture.writing ?? 0) + 1;
  picture.decision = decision;
}

/** End what `propose` began: then what the server said last is shown, also of other windows.
 * @param {any} picture @returns {boolean} */
export function conclude(picture) {
  picture.writing = Math.max(0, picture.writing - 1);
  return settle(picture);
}

function settle(picture) {
  if (picture.writing || picture.decision === picture.heard) return false;
  picture.decision = picture.heard;
  return true;
}

/** Returns a function that calls `show` with counts unless it has been called with newer ones.
 * @param {(counts: any) => void} show @returns {(answer: {counts: any, revision: number}) => void} */
export function newestCounts(show) {
  let newest = -1;
  return ({ counts, revision }) => {
    if (revision < newest) return;
    newest = revision;
    show(counts);
  };
}
