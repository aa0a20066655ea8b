"use strict";

// The answers of one reader, kept in the browser. Every pair has a record of its own, which is read again before it is
// written, and is final once it is answered: whatever is open in how many tabs, none can lose or double an answer.
class Answers {
  static FORMAT = "r2c-gan reader study answers";
  static PREFIX = "r2c-gan-reader-study";

  // Where the browser refuses storage, answers last as long as the page.
  static store = (() => {
    try {
      localStorage.setItem(Answers.PREFIX, "");
      localStorage.removeItem(Answers.PREFIX);
      return localStorage;
    } catch {
      const kept = new Map();
      return { temporary: true, getItem: (key) => kept.get(key) ?? null, setItem: (key, text) => kept.set(key, text) };
    }
  })();

  constructor(study, reader) {
    this.study = study;
    this.reader = reader;
    // The sum of the characters: code names that end in consecutive numbers fall into the two groups in turn.
    this.group = [...reader].reduce((sum, character) => sum + character.charCodeAt(0), 0) % 2;
  }

  key(name) {
    return [Answers.PREFIX, this.study.study, this.reader, name].join(":");
  }

  read(presentation) {
    return JSON.parse(Answers.store.getItem(this.key(presentation.id)) ?? "{}");
  }

  // Changes what is not final: the diagnosis until both images were shown, all else until the pair is answered.
  write(presentation, changes) {
    const record = this.read(presentation);
    if (record.answered) return;
    if (record.diagnosed) delete changes.covid;
    Answers.store.setItem(this.key(presentation.id), JSON.stringify({ ...record, ...changes }));
  }

  get consented() {
    return Answers.store.getItem(this.key("consent"));
  }

  consent() {
    if (!this.consented) Answers.store.setItem(this.key("consent"), new Date().toISOString());
  }

  get answered() {
    return this.study.presentations.filter((presentation) => this.read(presentation).answered);
  }

  // The first pair without an answer, undefined when there is none.
  get current() {
    return this.study.presentations.find((presentation) => !this.read(presentation).answered);
  }

  diagnosedSide(presentation) {
    const other = { left: "right", right: "left" };
    return this.group ? other[presentation.diagnose] : presentation.diagnose;
  }

  get fileName() {
    return `answers_${this.study.study}_${this.reader}.json`;
  }

  toJSON() {
    return {
      format: Answers.FORMAT,
      version: 1,
      study: this.study.study,
      reader: this.reader,
      consented: this.consented,
      saved: new Date().toISOString(),
      presentations: this.study.presentations.length,
      answers: this.answered.map((presentation) => {
        const { diagnosed, ...answer } = this.read(presentation);
        return { id: presentation.id, diagnosed_side: this.diagnosedSide(presentation), ...answer };
      }),
    };
  }

  save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(this, null, 1) + "\n"], { type: "application/json" }));
    link.download = this.fileName;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
}
