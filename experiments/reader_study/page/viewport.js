// Zoom, position, window and level, the same for every image. Positions are fractions of the size of a port, so that they
// mean the same in ports of any size; window and level are percentages of the range of gray.
class Viewport {
  static LARGEST = 12;
  static limit = (value, low, high) => Math.min(high, Math.max(low, value));

  constructor(ports, filter, changed) {
    Object.assign(this, { ports, filter, changed, filters: 0 });
    for (const port of ports) {
      port.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      port.addEventListener("pointerdown", (event) => this.press(event));
      port.addEventListener("pointermove", (event) => this.drag(event));
      port.addEventListener("dblclick", () => this.reset());
      port.addEventListener("contextmenu", (event) => event.preventDefault());
    }
    this.reset();
  }

  reset() {
    this.set({ scale: 1, x: 0, y: 0, window: 100, level: 50 });
  }

  set(changes) {
    Object.assign(this, changes);
    this.scale = Viewport.limit(this.scale, 1, Viewport.LARGEST);
    const reach = (this.scale - 1) / 2;
    this.x = Viewport.limit(this.x, -reach, reach);
    this.y = Viewport.limit(this.y, -reach, reach);
    this.window = Viewport.limit(this.window, 5, 200);
    this.level = Viewport.limit(this.level, 0, 100);
    this.apply();
  }

  apply() {
    const neutral = this.window === 100 && this.level === 50;
    if (!neutral) {
      for (const transfer of this.filter.firstElementChild.children) {
        transfer.setAttribute("slope", 100 / this.window);
        transfer.setAttribute("intercept", 0.5 - this.level / this.window);
      }
      this.filter.id = `window-${++this.filters}`; // a new name: some browsers do not notice a filter that changes
    }
    for (const port of this.ports) {
      const { style } = port.firstElementChild;
      style.transform = `translate(${100 * this.x}%, ${100 * this.y}%) scale(${this.scale})`;
      style.filter = neutral ? "none" : `url(#${this.filter.id})`;
    }
    this.changed?.(this);
  }

  // Zooms so that what is at (x, y), a fraction of the port from its centre, stays there.
  zoom(factor, x = 0, y = 0) {
    const scale = Viewport.limit(this.scale * factor, 1, Viewport.LARGEST);
    const growth = scale / this.scale;
    this.set({ scale, x: x - (x - this.x) * growth, y: y - (y - this.y) * growth });
  }

  pan(x, y) {
    this.set({ x: this.x + x, y: this.y + y });
  }

  // More contrast is a narrower window; brighter is a lower level.
  adjust(contrast, brightness) {
    this.set({ window: this.window - contrast, level: this.level - brightness });
  }

  wheel(event) {
    event.preventDefault();
    const box = event.currentTarget.getBoundingClientRect();
    const pixels = event.deltaY * (event.deltaMode ? 16 : 1);
    const x = (event.clientX - box.left) / box.width - 0.5;
    const y = (event.clientY - box.top) / box.height - 0.5;
    this.zoom(Math.exp(Viewport.limit(-pixels, -300, 300) / 500), x, y);
  }

  press(event) {
    event.currentTarget.setPointerCapture(event.pointerId);
    this.from = { x: event.clientX, y: event.clientY, window: event.button === 2 || event.shiftKey };
  }

  drag(event) {
    if (!this.from || !event.buttons) return;
    const [x, y] = [event.clientX - this.from.x, event.clientY - this.from.y];
    Object.assign(this.from, { x: event.clientX, y: event.clientY });
    const box = event.currentTarget.getBoundingClientRect();
    if (this.from.window) this.adjust(x / 4, -y / 4);
    else this.pan(x / box.width, y / box.height);
  }
}
