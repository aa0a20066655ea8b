// One restored image: the slider below it, and dragging on it, move the edge between poor and restored.
const set = (box, value) => {
  const input = box.querySelector("input[type=range]");
  if (value !== undefined) input.value = Math.max(0, Math.min(100, value));
  box.style.setProperty("--edge", input.value + "%");
  input.setAttribute("aria-valuetext", Math.round(input.value) + "% poor, the rest restored");
};
element.addEventListener("input", (event) => {
  const box = event.target.closest(".compare");
  if (box) set(box);
});
const drag = (event) => {
  const pair = event.target.closest(".pair");
  if (!pair || !(event.buttons & 1)) return;
  const place = pair.getBoundingClientRect();
  set(pair.closest(".compare"), (100 * (event.clientX - place.left)) / place.width);
};
element.addEventListener("pointerdown", drag);
element.addEventListener("pointermove", drag);
