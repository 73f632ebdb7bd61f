// Grids of pictures by keyboard and by mouse: one Tab stop with arrow keys inside, and a rectangle that selects.

/**
 * Make a grid one Tab stop: arrow keys, Home and End move inside it.
 * @param {HTMLElement} grid @param {string} tiles selector of what is moved through
 */
export function arrowKeys(grid, tiles = ".picture") {
  const all = () => /** @type {HTMLElement[]} */ ([...grid.querySelectorAll(tiles)]);
  const stop = (tile) => {
    for (const other of all()) other.tabIndex = other === tile ? 0 : -1;
  };
  new MutationObserver(() => {
    const found = all();
    const current = found.find((tile) => tile.tabIndex === 0 && tile.dataset.stop) ?? found[0];
    for (const tile of found) {
      tile.dataset.stop = "1";
      tile.tabIndex = tile === current ? 0 : -1;
    }
  }).observe(grid, { childList: true });
  grid.addEventListener("focusin", (event) => {
    const tile = /** @type {HTMLElement} */ (event.target).closest(tiles);
    if (tile) stop(tile);
  });
  grid.addEventListener("keydown", (event) => {
    const tile = /** @type {HTMLElement | null} */ (/** @type {HTMLElement} */ (event.target).closest(tiles));
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const found = all();
    const to = target(event.key, found.indexOf(tile), found.length, columnsOf(found));
    if (to === null) return;
    event.preventDefault();
    found[to].focus();
  });
}

/** Where a key leads from a place of a grid; null if nowhere.
 * @param {string} key @param {number} from @param {number} count @param {number} columns @returns {number | null} */
export function target(key, from, count, columns) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  if (!(key in steps)) return null;
  const to = from + steps[key];
  return to < 0 || to >= count ? null : to;
}

/** The number of tiles in the first row. */
function columnsOf(tiles) {
  const top = tiles[0]?.getBoundingClientRect().top;
  const next = tiles.findIndex((tile) => tile.getBoundingClientRect().top > top + 4);
  return next < 0 ? tiles.length : next;
}

/**
 * Let the mouse draw a rectangle over a grid; `select` gets the tiles it touches once the mouse is released. A press
 * without a movement stays a click. Fingers scroll.
 * @param {HTMLElement} grid @param {string} tiles @param {(touched: HTMLElement[], event: PointerEvent) => void} select
 */
export function rectangle(grid, tiles, select) {
  let from = null;
  let drawn = null;
  grid.addEventListener("dragstart", (event) => event.preventDefault());
  grid.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0) return;
    from = { x: event.pageX, y: event.pageY };
  });
  addEventListener("pointermove", (event) => {
    if (!from || (!drawn && Math.hypot(event.pageX - from.x, event.pageY - from.y) < 8)) return;
    if (!drawn) {
      drawn = document.createElement("div");
      drawn.className = "rectangle";
      document.body.append(drawn);
    }
    const { left, top, width, height } = box(from, { x: event.pageX, y: event.pageY });
    Object.assign(drawn.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
  });
  addEventListener("pointerup", (event) => {
    if (drawn) {
      const area = drawn.getBoundingClientRect();
      drawn.remove();
      select(/** @type {HTMLElement[]} */ ([...grid.querySelectorAll(tiles)]).filter((tile) => touches(area, tile.getBoundingClientRect())), event);
      // The release is a click on what lies under it, which nobody meant.
      addEventListener("click", swallow, { capture: true, once: true });
      setTimeout(() => removeEventListener("click", swallow, { capture: true }));
    }
    from = drawn = null;
  });
}

function swallow(event) {
  event.preventDefault();
  event.stopPropagation();
}

/** The rectangle between two corners. */
export function box(from, to) {
  return {
    left: Math.min(from.x, to.x),
    top: Math.min(from.y, to.y),
    width: Math.abs(from.x - to.x),
    height: Math.abs(from.y - to.y),
  };
}

/** Whether two rectangles have a point in common. */
export function touches(one, other) {
  return one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;
}
