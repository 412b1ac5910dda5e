/* The gallery: cards that can be sorted and searched; each is filled when it comes near the window. */
(() => {
  "use strict";

  function element(tag, className, ...content) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...content); // strings become text, never markup
    return made;
  }

  const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

  const shown = (score) => (100 * score).toFixed(1);

  function photographOf(image) {
    if (!image.photo) {
      return element("div", "photo missing", `${image.id} could not be read`);
    }
    const picture = element("img");
    [picture.width, picture.height] = image.size;
    picture.alt = image.id;
    picture.decoding = "async";
    picture.src = image.photo;
    return element("div", "photo", picture);
  }

  function fill(card, image, runs) {
    const figure = element("figure", "", photographOf(image));
    const side = element("figcaption");
    figure.append(side);
    image.captions.forEach(({ caption, scores, attention }, index) => {
      const line = element("p", "caption");
      const marks = element("p", "marks");
      for (const [metric, score] of Object.entries(scores)) {
        const mark = element("span", "", `${metric} ${shown(score)}`);
        mark.dataset.metric = metric;
        marks.append(mark);
      }
      const name = runs.length > 1 ? [element("h4", "", runs[index])] : [];
      side.append(element("div", "run", ...name, line, marks));
      showAttention(figure, {
        words: caption ? caption.split(" ") : [],
        maps: attention && image.photo ? bytes(attention.maps) : null,
        rows: attention?.rows,
        columns: attention?.columns,
        region: attention?.region,
        looked: attention?.looked,
        caption: line,
      });
    });
    const references = image.references.map((reference) => element("li", "", reference));
    side.append(element("ul", "references", ...references), element("p", "file", image.id));
    card.replaceChildren(figure);
  }

  // The sort key of an image: a run's score, or the largest difference between runs; null if unknown.
  function keyOf(image, metric, run) {
    const scores = image.captions.map((caption) => caption.scores[metric] ?? null);
    if (run !== "") return scores[run];
    const known = scores.filter((score) => score !== null);
    return known.length > 1 ? Math.max(...known) - Math.min(...known) : null;
  }

  function showGallery(gallery) {
    const { images, runs } = JSON.parse(gallery.querySelector(".gallery-data").textContent);
    const list = gallery.querySelector(".images");
    const tools = gallery.querySelector(".tools");
    const control = (name) => tools.querySelector(`[name=${name}]`);

    const cards = images.map((image) => {
      const texts = [...image.captions.map(({ caption }) => caption), ...image.references, image.id];
      const card = element("li", "card");
      return { card, image, text: texts.join("\n").toLowerCase() };
    });
    const imageOf = new Map(cards.map(({ card, image }) => [card, image]));
    const observer = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          if (!isIntersecting) continue;
          observer.unobserve(target);
          fill(target, imageOf.get(target), runs);
          choose(target);
        }
      },
      { rootMargin: "1200px 0px" },
    );

    function choose(card) {
      for (const mark of card.querySelectorAll(".marks span"))
        mark.classList.toggle("chosen", mark.dataset.metric === control("metric").value);
    }

    function sort() {
      const metric = control("metric").value;
      const direction = Number(control("direction").value);
      const run = control("run")?.value ?? "0";
      for (const name of ["direction", "run"])
        if (control(name)) control(name).disabled = metric === "";
      let order = cards;
      if (metric) {
        const keyed = cards.map(({ card, image }) => ({ card, key: keyOf(image, metric, run) }));
        keyed.sort((a, b) =>
          a.key === null || b.key === null
            ? (a.key === null) - (b.key === null) // images without a score come last in both directions
            : direction * (a.key - b.key),
        );
        order = keyed;
      }
      list.append(...order.map(({ card }) => card));
      list.querySelectorAll(".card").forEach(choose);
    }

    function search() {
      const sought = control("search").value.trim().toLowerCase();
      let found = 0;
      for (const { card, text } of cards) {
        card.hidden = !text.includes(sought);
        found += !card.hidden;
      }
      const count = (number) => number.toLocaleString("en");
      tools.querySelector("output").value = sought
        ? `${count(found)} of ${count(cards.length)} images`
        : `${count(cards.length)} images`;
    }

    // After sorting or searching, scroll back to the first result.
    function toTop() {
      if (list.getBoundingClientRect().top < 0) gallery.scrollIntoView();
    }

    for (const name of ["metric", "direction", "run"])
      control(name)?.addEventListener("change", () => {
        sort();
        toTop();
      });
    control("search").addEventListener("input", () => {
      search();
      toTop();
    });
    sort();
    search();
    for (const { card } of cards) observer.observe(card);
  }

  document.querySelectorAll(".gallery").forEach(showGallery);
})();
