/* A caption whose words show their attention maps. It has no dependencies and one function:
 *
 *   showAttention(figure, {words, maps, rows, columns, region, looked, caption})
 *
 * figure   an element with one <img>, the only child of its parent, and an element ".caption"
 * words    the words of the caption
 * maps     Uint8Array of words x rows x columns, 255 at each word's peak; null shows plain text
 * region   the part of the photograph that the maps cover, as fractions [x0, y0, x1, y1] of its
 *          width and height; by default all of it
 * looked   how much each word looked at the image, from 0 to 1, shown beside it in per cent; optional
 * caption  the element for the words, if the figure has several captions; default ".caption"
 *
 * Hovering, focusing or tapping a word shows its map over the photograph; a screen reader says where
 * the map has its peak. A caption is one stop of the Tab key; the arrow keys, Home and End move from
 * word to word. A second tap, a tap on the photograph or Escape hides the map. Calling the function
 * again replaces the caption.
 */
const showAttention = (() => {
  "use strict";

  const PIXELS = 160; // width and height of the canvas, which CSS stretches over the photograph

  // Colours from attention 0 to the map's peak: red, green, blue, opacity.
  const STOPS = [
    [6, 8, 22, 0.8],
    [60, 14, 40, 0.66],
    [214, 74, 22, 0.42],
    [255, 176, 50, 0.3],
    [255, 232, 140, 0.24],
  ];

  const COLOURS = Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (STOPS.length - 1);
    const below = Math.min(Math.floor(place), STOPS.length - 2);
    const [red, green, blue, opacity] = STOPS[below].map(
      (part, index) => part + (place - below) * (STOPS[below + 1][index] - part),
    );
    return Uint8ClampedArray.of(red, green, blue, 255 * opacity);
  });

  const overlays = new WeakMap(); // for each image: its canvas, and the hovered and the focused map

  function overlayOf(image) {
    if (!overlays.has(image)) {
      const canvas = document.createElement("canvas");
      canvas.className = "attention";
      canvas.width = canvas.height = PIXELS;
      canvas.setAttribute("aria-hidden", "true");
      image.parentElement.classList.add("attended");
      image.after(canvas);
      image.parentElement.addEventListener("click", () => document.activeElement?.blur());
      overlays.set(image, { canvas, hovered: null, focused: null });
    }
    return overlays.get(image);
  }

  function update(overlay) {
    const map = overlay.hovered ?? overlay.focused;
    overlay.canvas.classList.toggle("shown", map !== null);
    if (map) paint(overlay.canvas, map);
  }

  function paint(canvas, { values, rows, columns, region: [x0, y0, x1, y1] }) {
    const across = weights(columns, x0, x1);
    const down = weights(rows, y0, y1);
    const stretched = new Float32Array(rows * PIXELS);
    for (let row = 0; row < rows; row++)
      for (let x = 0; x < PIXELS; x++)
        for (const [column, weight] of across[x])
          stretched[row * PIXELS + x] += weight * values[row * columns + column];
    const smooth = new Float32Array(PIXELS * PIXELS);
    let peak = 1e-6;
    for (let y = 0; y < PIXELS; y++)
      for (let x = 0; x < PIXELS; x++) {
        let value = 0;
        for (const [row, weight] of down[y]) value += weight * stretched[row * PIXELS + x];
        smooth[y * PIXELS + x] = value;
        peak = Math.max(peak, value);
      }
    const context = canvas.getContext("2d");
    const picture = context.createImageData(PIXELS, PIXELS);
    smooth.forEach((value, index) => {
      picture.data.set(COLOURS[Math.round((255 * value) / peak)], 4 * index);
    });
    context.putImageData(picture, 0, 0);
  }

  // For each pixel along a side: the cells that contribute to it, with their weights. These are
  // cubic B-splines, which are smooth and never negative. Pixels outside the region have none.
  function weights(cells, start, end) {
    return Array.from({ length: PIXELS }, (_, pixel) => {
      const share = ((pixel + 0.5) / PIXELS - start) / (end - start);
      if (share < 0 || share > 1) return [];
      const place = share * cells - 0.5;
      const first = Math.floor(place);
      const t = place - first;
      const spline = [
        (1 - t) ** 3, 3 * t ** 3 - 6 * t ** 2 + 4, -3 * t ** 3 + 3 * t ** 2 + 3 * t + 1, t ** 3,
      ];
      return spline.map((weight, offset) => {
        const cell = first - 1 + offset;
        return [Math.min(Math.max(cell, 0), cells - 1), weight / 6];
      });
    });
  }

  // The part of the photograph where a map has its peak: "upper left", "centre", "lower right".
  function peakOf({ values, rows, columns, region: [x0, y0, x1, y1] }) {
    const peak = values.indexOf(Math.max(...values));
    const across = x0 + (x1 - x0) * (((peak % columns) + 0.5) / columns);
    const down = y0 + (y1 - y0) * ((Math.floor(peak / columns) + 0.5) / rows);
    const row = ["upper", "middle", "lower"][Math.floor(3 * down)];
    const column = ["left", "centre", "right"][Math.floor(3 * across)];
    return `${row} ${column}`.replace("middle centre", "centre");
  }

  function showAttention(figure, options) {
    const { words, maps, rows, columns, region = [0, 0, 1, 1], looked } = options;
    const caption = options.caption ?? figure.querySelector(".caption");
    if (!maps) {
      caption.textContent = words.join(" ");
      return;
    }
    const overlay = overlayOf(figure.querySelector("img"));
    overlay.hovered = overlay.focused = null;
    update(overlay);

    const map = (index) => {
      const values = maps.subarray(index * rows * columns, (index + 1) * rows * columns);
      return { values, rows, columns, region };
    };
    const buttons = words.map((word, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "word";
      button.textContent = word;
      button.tabIndex = index ? -1 : 0;
      button.setAttribute("aria-description", `looked most at the ${peakOf(map(index))}`);
      if (looked) {
        const percent = Math.round(100 * looked[index]);
        button.dataset.looked = percent;
        button.title = `${percent} % of its attention is on the image`;
      }
      return button;
    });
    const mapOf = (target) => {
      const index = buttons.indexOf(target);
      return index < 0 ? null : map(index);
    };
    const group = document.createElement("span");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Caption: arrow keys move from word to word");
    group.append(...buttons.flatMap((button, index) => (index ? [" ", button] : [button])));
    caption.replaceChildren(group);

    // Ignore hovering by touch: a tap focuses the word instead.
    group.addEventListener("pointerover", (event) => {
      overlay.hovered = event.pointerType === "touch" ? null : mapOf(event.target);
      update(overlay);
    });
    group.addEventListener("pointerleave", () => {
      overlay.hovered = null;
      update(overlay);
    });
    group.addEventListener("focusin", (event) => {
      overlay.focused = mapOf(event.target);
      for (const button of buttons) button.tabIndex = button === event.target ? 0 : -1;
      update(overlay);
    });
    group.addEventListener("focusout", () => {
      overlay.focused = null;
      update(overlay);
    });
    let before = null; // the focused element before the pointer was pressed
    group.addEventListener("pointerdown", () => {
      before = document.activeElement;
    });
    group.addEventListener("click", (event) => {
      if (!buttons.includes(event.target)) return;
      // Safari does not focus a tapped button by itself.
      if (before === event.target) event.target.blur();
      else event.target.focus();
      before = null;
    });
    group.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        const next = buttons.indexOf(event.target) + step;
        buttons[(next + buttons.length) % buttons.length].focus();
        event.preventDefault();
      } else if (event.key === "Home" || event.key === "End") {
        buttons.at(event.key === "Home" ? 0 : -1).focus();
        event.preventDefault();
      } else if (event.key === "Escape") event.target.blur();
    });
  }

  return showAttention;
})();
