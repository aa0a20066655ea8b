// The page: which screen is shown, the questions, the keys. What is shown always follows from the kept answers alone, so
// a reload, or an answer given in another tab, is nothing special.
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const at = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const SIDES = ["left", "right"];
  const RATINGS = ["rating_left", "rating_right"];
  const CHOICES = {
    covid: [[true, "Yes", "Y"], [false, "No", "N"]],
    preferred: [["left", "Left", "←"], ...(study.allow_no_preference ? [["none", "No preference", "N"]] : []), ["right", "Right", "→"]],
    rating: ["unusable", "poor", "fair", "good", "excellent"].map((word, index) => [index + 1, word]),
  };
  const MISSING = {
    covid: "the question for COVID-19",
    preferred: "which image you would rather diagnose from",
    rating_left: "the rating of the left image",
    rating_right: "the rating of the right image",
  };
  const fits = matchMedia("(min-width: 1000px) and (min-height: 560px)");
  const session = (() => {
    try {
      return sessionStorage;
    } catch {
      return { getItem: () => null, setItem: () => {}, removeItem: () => {} };
    }
  })();

  let answers = null;
  let shown = null; // the id and the step on the screen
  let marked = RATINGS[0]; // what the keys 1 to 5 rate
  let loaded = false;

  const clock = {
    milliseconds: 0,
    since: null,
    restart() {
      this.milliseconds = 0;
      this.since = document.hidden ? null : performance.now();
    },
    toggle() {
      if (this.since !== null) this.milliseconds += performance.now() - this.since;
      this.since = document.hidden ? null : performance.now();
    },
    get seconds() {
      this.toggle();
      return Math.round(this.milliseconds / 100) / 10;
    },
  };

  const viewport = new Viewport(all(".port"), at("filter"), (view) => {
    at("#zoom").value = `${Math.round(100 * view.scale)}%`;
    for (const name of ["window", "level"]) {
      at(`#${name}`).value = view[name];
      at(`#${name}-value`).value = `${Math.round(view[name])}%`;
    }
  });

  // --- What is on the screen --------------------------------------------------------------------------------------

  const screen = (name) => {
    for (const main of all("main")) main.hidden = main.id !== name;
  };

  const say = (text) => {
    at("#status").textContent = text;
  };

  const stepOf = (record) => (record.diagnosed ? "pair" : "diagnosis");
  const fieldsOf = (step) => (step === "pair" ? ["preferred", ...RATINGS] : ["covid"]);

  // `here` says that the reader has just gone on in this window; else a change of the pair comes from another one.
  const render = (here = false) => {
    if (!answers) {
      screen("welcome");
      return;
    }
    const presentation = answers.current;
    if (!presentation) {
      screen("end");
      if (shown) at("#end h1").focus();
      shown = null;
      return;
    }
    screen("reading");
    const record = answers.read(presentation);
    const step = stepOf(record);
    const done = answers.answered.length;
    const total = study.presentations.length;
    at("#who").textContent = answers.reader;
    at("#place").textContent = `Pair ${done + 1} of ${total}`;
    Object.assign(at("#progress"), { max: total, value: done });
    if (shown !== `${presentation.id} ${step}`) {
      const followed = shown !== null && !here;
      shown = `${presentation.id} ${step}`;
      show(presentation, step);
      if (followed) say("Answered in another window; this one has followed.");
    }
    for (const button of all("[data-value]")) {
      const field = button.closest("[data-field]").dataset.field;
      button.setAttribute("aria-pressed", String(record[field]) === button.dataset.value);
    }
    for (const field of RATINGS) at(`[data-field=${field}]`).classList.toggle("marked", field === marked);
    at("#next").classList.toggle("ready", loaded && fieldsOf(step).every((field) => field in record));
  };

  // The mark goes to what is still to be rated, else it stays.
  const mark = (record) => {
    marked = RATINGS.find((field) => !(field in record)) ?? marked;
  };

  const show = (presentation, step) => {
    const alone = step === "diagnosis" ? answers.diagnosedSide(presentation) : null;
    mark(answers.read(presentation));
    loaded = false;
    say(Answers.store.temporary ? "This browser keeps nothing: save your answers before you close the page." : "");
    at("#reading").dataset.step = step;
    at("#reading").setAttribute("aria-busy", true);
    for (const part of all("#reading [data-step]")) part.hidden = part.dataset.step !== step;
    at("#next span").textContent = step === "pair" ? "Next pair" : "Show both images";
    const opened = [];
    for (const figure of all("figure")) {
      const side = figure.dataset.side;
      const image = figure.querySelector("img");
      figure.hidden = alone !== null && side !== alone;
      figure.querySelector("figcaption").textContent = alone ? "One image alone" : { left: "Left", right: "Right" }[side];
      if (figure.hidden) {
        image.removeAttribute("src");
        continue;
      }
      image.alt = alone ? "Chest radiograph" : `Chest radiograph, ${side}`;
      image.src = presentation[side];
      opened.push(image.decode());
    }
    const expected = shown;
    Promise.all(opened).then(
      () => {
        if (shown !== expected) return;
        loaded = true;
        at("#reading").setAttribute("aria-busy", false);
        clock.restart();
        render();
        preload(presentation);
      },
      () => {
        if (shown === expected)
          say("An image of this pair cannot be loaded. Please copy the whole study folder, with its folder “images”, and reload.");
      },
    );
    viewport.reset();
    at(step === "pair" ? "#ask-preferred" : "#ask-covid").focus();
  };

  const preload = (presentation) => {
    const next = study.presentations[study.presentations.indexOf(presentation) + 1];
    for (const side of next ? SIDES : []) new Image().src = next[side];
  };

  // --- What a reader does -------------------------------------------------------------------------------------------

  // The pair on the screen, if it is there to be judged. Another tab may have gone on since this one was drawn: then it
  // is drawn anew, and what was pressed counts for nothing.
  const onScreen = () => {
    const presentation = answers.current;
    if (presentation && shown === `${presentation.id} ${stepOf(answers.read(presentation))}`) return loaded && presentation;
    render();
    return null;
  };

  const set = (field, value) => {
    const presentation = onScreen();
    if (!presentation || !fieldsOf(stepOf(answers.read(presentation))).includes(field)) return;
    answers.write(presentation, { [field]: value });
    say("");
    mark(answers.read(presentation));
    render();
  };

  const next = () => {
    const presentation = onScreen();
    if (!presentation) return;
    const record = answers.read(presentation);
    const missing = fieldsOf(stepOf(record)).filter((field) => !(field in record));
    if (missing.length) {
      say(`Still to answer: ${missing.map((field) => MISSING[field]).join(", ")}.`);
      return;
    }
    if (record.diagnosed) answers.write(presentation, { seconds_pair: clock.seconds, answered: new Date().toISOString() });
    else answers.write(presentation, { seconds_diagnosis: clock.seconds, diagnosed: true });
    render(true);
  };

  const save = () => {
    answers.save();
    const text = `Saved as ${answers.fileName}: ${answers.answered.length} of ${study.presentations.length} pairs.`;
    say(text);
    at("#saved").textContent = `${text} Look in the folder of your downloads.`;
  };

  const STEP = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

  const press = (event) => {
    const { key, code } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || at("#help").open || !fits.matches) return false;
    if (at("#reading").hidden || event.target.matches("input[type=text]")) return false;
    const onSlider = event.target.matches("input");
    const onButton = event.target.matches("button");
    const digit = /^(?:Digit|Numpad)([1-5])$/.exec(code)?.[1] ?? /^[1-5]$/.exec(key)?.[0];
    const letter = key.toLowerCase();
    const pair = at("#reading").dataset.step === "pair";
    if (key in STEP) {
      if (onSlider) return false;
      if (event.shiftKey) viewport.pan(...STEP[key].map((part) => part / 8));
      else if (!pair) return false;
      else if (STEP[key][1]) {
        marked = RATINGS.find((field) => field !== marked);
        render();
      } else set("preferred", key === "ArrowLeft" ? "left" : "right");
    } else if (key === "Enter") {
      if (onButton || event.repeat) return false;
      next();
    } else if (pair && digit && !event.shiftKey) set(marked, Number(digit));
    else if (!pair && letter === "y") set("covid", true);
    else if (!pair && letter === "n") set("covid", false);
    else if (pair && letter === "n" && study.allow_no_preference) set("preferred", "none");
    else if (key === "+" || key === "=") viewport.zoom(1.25);
    else if (key === "-" || key === "−") viewport.zoom(0.8);
    else if (letter === "c") viewport.adjust(5, 0);
    else if (letter === "v") viewport.adjust(-5, 0);
    else if (letter === "b") viewport.adjust(0, 5);
    else if (letter === "d") viewport.adjust(0, -5);
    else if (key === "0") viewport.reset();
    else if (key === "?" || letter === "h") at("#help").showModal();
    else return false;
    return true;
  };

  const begin = (reader) => {
    answers = new Answers(study, reader);
    answers.consent();
    session.setItem(Answers.PREFIX + study.study, reader);
    render();
  };

  // --- Wiring ---------------------------------------------------------------------------------------------------------

  for (const group of all("[data-field]")) {
    const { field } = group.dataset;
    for (const [value, label, key] of CHOICES[field.startsWith("rating") ? "rating" : field]) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.value = value;
      if (key) {
        const hint = Object.assign(document.createElement("kbd"), { textContent: key });
        hint.classList.toggle("arrow", "←→".includes(key));
        button.append(label, " ", hint);
      } else {
        const [number, word] = ["b", "small"].map((tag) => document.createElement(tag));
        number.textContent = value;
        word.textContent = label;
        button.append(number, " ", word);
      }
      button.addEventListener("click", () => set(field, value));
      group.querySelector(".choices").append(button);
    }
  }
  // After a click of the mouse the keys answer questions again, and Enter goes on instead of pressing the same button.
  addEventListener("click", (event) => {
    if (event.detail && event.target.closest("#reading button")) document.activeElement.blur();
  });
  addEventListener("keydown", (event) => {
    if (press(event)) event.preventDefault();
  });
  addEventListener("storage", () => render());
  document.addEventListener("visibilitychange", () => clock.toggle());
  at("#next").addEventListener("click", next);
  at("#zoom-in").addEventListener("click", () => viewport.zoom(1.25));
  at("#zoom-out").addEventListener("click", () => viewport.zoom(0.8));
  at("#reset").addEventListener("click", () => viewport.reset());
  for (const name of ["window", "level"])
    at(`#${name}`).addEventListener("input", (event) => viewport.set({ [name]: Number(event.target.value) }));
  for (const button of all("[data-help]")) button.addEventListener("click", () => at("#help").showModal());
  for (const button of all("[data-save]")) button.addEventListener("click", save);
  for (const total of all("[data-total]")) total.textContent = study.presentations.length;
  for (const part of all("[data-none]")) part.hidden = !study.allow_no_preference;
  at("#another").addEventListener("click", () => {
    session.removeItem(Answers.PREFIX + study.study);
    answers = null;
    at("#start").reset();
    at("#saved").textContent = "";
    render();
  });
  at("#start").addEventListener("submit", (event) => {
    event.preventDefault();
    begin(at("#reader").value.trim().toLowerCase());
  });

  const reader = session.getItem(Answers.PREFIX + study.study);
  if (reader) begin(reader);
  else render();
})();
