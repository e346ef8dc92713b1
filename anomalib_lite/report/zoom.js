// A picture as large as one likes, for the server's page and the report: wheel, pinch, buttons and keys enlarge it, dragging and arrows move it.
const MOST = 40, STEP = 1.4, MOVE = 60;

// stage: what it is seen through; sheet: what holds picture and lines, and is moved.
export function zoomable(stage, sheet, told) {
  let scale = 1, left = 0, top = 0, pinched = 0, size = null;
  const fingers = new Map();

  function place() {
    // What is larger than the stage covers it, what is smaller stays in the middle.
    const { clientWidth: width, clientHeight: height } = stage;
    const wide = sheet.offsetWidth * scale, high = sheet.offsetHeight * scale;
    left = wide <= width ? (width - wide) / 2 : Math.min(0, Math.max(width - wide, left));
    top = high <= height ? (height - high) / 2 : Math.min(0, Math.max(height - high, top));
    sheet.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    sheet.style.setProperty("--scale", scale); // for lines that stay thin
    told(`${Math.round(100 * scale)} %`);
  }

  function by(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const wanted = Math.min(MOST, Math.max(1, scale * factor)), ratio = wanted / scale;
    left = x - ratio * (x - left);
    top = y - ratio * (y - top);
    scale = wanted;
    place();
  }

  function move(x, y) { left += x; top += y; place(); }
  function fit() { scale = 1; left = top = 0; place(); }
  const inStage = (event) => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    by(STEP ** (-Math.sign(event.deltaY) / 2), ...inStage(event));
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stage.focus();
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, inStage(event));
    pinched = 0;
  });
  stage.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = inStage(event);
    fingers.set(event.pointerId, now);
    if (fingers.size === 1) { move(now[0] - before[0], now[1] - before[1]); return; }
    const [one, other] = [...fingers.values()], apart = Math.hypot(one[0] - other[0], one[1] - other[1]);
    if (pinched) by(apart / pinched, (one[0] + other[0]) / 2, (one[1] + other[1]) / 2);
    pinched = apart;
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => { fingers.delete(event.pointerId); pinched = 0; });

  // A picture of so many pixels: at 100 % the whole of it is seen.
  function lay(width, height) {
    size = [width, height];
    const fitting = Math.min(stage.clientWidth / width, stage.clientHeight / height);
    sheet.style.width = `${width * fitting}px`;
    sheet.style.height = `${height * fitting}px`;
    fit();
  }
  addEventListener("resize", () => { if (stage.clientWidth && size) lay(...size); });

  const keys = {
    "+": () => by(STEP), "=": () => by(STEP), "-": () => by(1 / STEP), 0: fit,
    ArrowLeft: () => move(MOVE, 0), ArrowRight: () => move(-MOVE, 0), ArrowUp: () => move(0, MOVE), ArrowDown: () => move(0, -MOVE),
  };
  return { lay, enlarged: () => scale > 1, key(name) { if (!keys[name]) return false; keys[name](); return true; } };
}
