/* The demo page: uploads a photograph that is chosen, dropped or pasted, and shows the captions that
 * one model or two have written. */
(() => {
  "use strict";

  const form = document.querySelector(".ask");
  const input = form.querySelector("input");
  const drop = form.querySelector(".drop");
  const status = form.querySelector("[role=status]");
  const failure = form.querySelector("[role=alert]");
  const described = document.querySelector(".described");
  const figures = [...described.querySelectorAll("figure")]; // one for each model
  const maxBytes = Number(form.dataset.maxBytes);

  class UserError extends Error {} // an error whose message the page shows

  const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

  const number = (value) => value.toFixed(2).replace("-", "−");

  function pieceOf(className, text) {
    const piece = document.createElement("span");
    piece.className = className;
    piece.textContent = text;
    return piece;
  }

  async function answerTo(file, signal) {
    if (file.size > maxBytes)
      throw new UserError(`${file.name} has more than ${maxBytes / 1e6} MB: choose a smaller file.`);
    const body = new FormData();
    body.append("photo", file);
    const response = await fetch("caption", { method: "POST", body, signal });
    const answer = await response.json();
    if (!response.ok) throw new UserError(answer.error);
    return answer;
  }

  let latest = null; // the AbortController of the latest request

  async function ask(files) {
    latest?.abort();
    latest = new AbortController();
    const { signal } = latest;
    failure.textContent = status.textContent = "";
    form.removeAttribute("aria-busy");
    const [file] = files;
    if (files.length !== 1) {
      failure.textContent = file
        ? "Photographs are captioned one at a time: drop a single file."
        : "That was no file: save the picture to a file first.";
      return;
    }
    status.textContent = `Looking at ${file.name} …`;
    form.setAttribute("aria-busy", "true");
    const start = performance.now();
    try {
      const answer = await answerTo(file, signal);
      show(file.name, answer);
      const seconds = ((performance.now() - start) / 1000).toFixed(1);
      status.textContent = `${file.name} was captioned in ${seconds} s.`;
      status.append(pieceOf("spoken", spoken(answer)));
    } catch (error) {
      if (signal.aborted) return; // a newer request has replaced this one
      status.textContent = "";
      failure.textContent =
        error instanceof UserError
          ? error.message
          : `${file.name} could not be sent: is it a file, and is the demo still running?`;
    }
    form.removeAttribute("aria-busy");
  }

  // What a screen reader says when the captions are there.
  const spoken = ({ models }) =>
    models
      .map(({ name, captions }) => `${models.length > 1 ? ` ${name}:` : ""} ${captions[0].text}.`)
      .join("");

  function show(name, { photo, models }) {
    models.forEach(({ captions }, place) => showModel(figures[place], name, photo, captions));
    const all = models.flatMap(({ captions }) => captions);
    described.querySelector(".hint").hidden = all.every(({ attention }) => attention === null);
    described.querySelector(".partial").hidden = !all.some(({ attention }) => attention?.looked);
    described.querySelector(".explained").hidden = all.length === models.length;
    described.hidden = false;
  }

  function showModel(figure, name, photo, captions) {
    const image = document.createElement("img");
    [image.width, image.height] = [photo.width, photo.height];
    image.alt = name;
    image.src = photo.url;
    const frame = document.createElement("div");
    frame.className = "photo";
    frame.style.setProperty("--ratio", photo.width / photo.height);
    frame.append(image);
    figure.querySelector(".photo").replaceWith(frame);

    const hasAttention = captions[0].attention !== null;
    const choices = captions.map(({ text, score, log_prob }, index) => {
      const choice = document.createElement(hasAttention ? "button" : "div");
      choice.className = "choice";
      const scores = pieceOf("scores", number(score));
      scores.append(pieceOf("log-prob", `log p ${number(log_prob)}`));
      choice.append(pieceOf("", text), scores);
      if (hasAttention) {
        choice.type = "button";
        choice.addEventListener("click", () => choose(index));
      }
      return choice;
    });

    function choose(index) {
      const { words, attention } = captions[index];
      showAttention(figure, { words, ...attention, maps: attention && bytes(attention.maps) });
      if (hasAttention)
        choices.forEach((choice, place) => choice.setAttribute("aria-pressed", place === index));
    }

    figure.querySelector("ol").replaceChildren(
      ...choices.map((choice) => {
        const item = document.createElement("li");
        item.append(choice);
        return item;
      }),
    );
    figure.querySelector(".alternatives").hidden = captions.length < 2;
    choose(0);
  }

  input.addEventListener("change", () => {
    if (input.files.length) ask([...input.files]);
    input.value = ""; // so that choosing the same file again fires a change event
  });
  // Accept drops anywhere in the window. By default, a photograph dropped beside the frame would
  // replace the page.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    ask([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) ask([...event.clipboardData.files]);
  });
})();
