// The map.
const onMap = new Audio();
alone(onMap);
const data = JSON.parse(document.getElementById("map-data").textContent);
const atlas = document.getElementById("atlas");
const legend = document.getElementById("legend");
const said = document.getElementById("point");
const select = document.getElementById("attribute");
const NAMED_COLOURS = 8;
const RADIUS = data.points.length > 800 ? 5 : 7;
let current = -1;

function colour(number, count) {
  if (number < 0) return "var(--none)";
  if (count <= NAMED_COLOURS) return `var(--tag${number})`;
  return `oklch(var(--lightness) 0.15 ${Math.round((360 * number) / count)})`;
}

const points = data.points.map(([x, y]) => {
  const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  circle.setAttribute("cx", x);
  circle.setAttribute("cy", y);
  circle.setAttribute("r", RADIUS);
  atlas.append(circle);
  return circle;
});

function paint() {
  const attribute = data.attributes[select ? Number(select.value) : -1];
  points.forEach((circle, number) => {
    const tag = attribute ? attribute.numbers[number] : -1;
    circle.style.fill = colour(tag, attribute ? attribute.tags.length : 1);
    circle.dataset.tag = tag;
  });
  legend.replaceChildren(...(attribute ? attribute.tags.map((tag, number) => entry(tag, number, attribute)) : []));
  atlas.classList.remove("focused");
}

// A name of the legend is a switch: it shows its clips alone.
function entry(tag, number, attribute) {
  const button = document.createElement("button");
  const dot = span("", "dot");
  dot.style.background = colour(number, attribute.tags.length);
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.append(dot, `${tag} `, span(attribute.numbers.filter((of) => of === number).length, "muted"));
  button.addEventListener("click", () => focusOn(button, number));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function span(text, name) {
  const element = document.createElement("span");
  element.className = name;
  element.textContent = text;
  return element;
}

function focusOn(button, number) {
  const on = button.getAttribute("aria-pressed") === "false";
  for (const other of legend.querySelectorAll("button")) other.setAttribute("aria-pressed", String(on && other === button));
  atlas.classList.toggle("focused", on);
  for (const circle of points) circle.classList.toggle("chosen", on && circle.dataset.tag === String(number));
}

function show(number) {
  if (current >= 0) points[current].classList.remove("current");
  current = number;
  if (number < 0) return;
  points[number].classList.add("current");
  const key = document.createElement("b");
  key.textContent = data.keys[number];
  const heard = number in data.sounds ? "Click it, or press Enter, to hear it." : "Its sound is not on this page.";
  said.replaceChildren(key, span(data.tags[number], ""), span(heard, "muted"));
}

function play() {
  if (!(current in data.sounds)) return;
  onMap.src = data.sounds[current];
  onMap.play();
}

// The point nearest to a place of the map, within a reach.
function nearest(x, y, reach, among = () => true) {
  let best = -1;
  let least = reach * reach;
  data.points.forEach(([px, py], number) => {
    const distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance < least && among(px, py, number)) [best, least] = [number, distance];
  });
  return best;
}

function under(event) {
  const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(atlas.getScreenCTM().inverse());
  return nearest(place.x, place.y, event.pointerType === "touch" ? 50 : 25);
}

atlas.addEventListener("pointermove", (event) => {
  const number = under(event);
  if (number >= 0) show(number);
});
atlas.addEventListener("click", (event) => {
  const number = under(event);
  if (number < 0) return;
  show(number);
  play();
});

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
atlas.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") play();
  else if (event.key in STEPS) step(...STEPS[event.key]);
  else return;
  event.preventDefault();
});

// To the nearest point that lies more in this direction than beside it.
function step(dx, dy) {
  if (current < 0) return show(nearest(500, 500, 2000));
  const [x, y] = data.points[current];
  const ahead = (px, py) => {
    const along = (px - x) * dx + (py - y) * dy;
    return along > 0 && along >= Math.abs((px - x) * dy + (py - y) * dx);
  };
  const next = nearest(x, y, 2000, ahead);
  if (next >= 0) show(next);
}

if (select) select.addEventListener("change", paint);
paint();
