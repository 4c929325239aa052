// What the tests ask of a report's page; each function is called by its name.

const all = (selector) => [...document.querySelectorAll(selector)];
const event = (target, name, happened = () => true) =>
  new Promise((done) => target.addEventListener(name, () => happened() && done(true)));

function sounds() {
  return Promise.all(all("audio").map(async (sound) => {
    if (sound.readyState < 1 && !sound.error) await Promise.race([event(sound, "loadedmetadata"), event(sound, "error")]);
    const {readyState, duration, error} = sound;
    return {readyState, duration, expected: Number(sound.dataset.seconds), error: error && error.message};
  }));
}

// Starts one sound, then another; the first is to stop.
async function played() {
  const [first, second] = all("audio");
  const stopped = event(first, "pause");
  await first.play();
  await event(first, "timeupdate", () => first.currentTime > 0.2);
  await second.play();
  await stopped;
  second.pause();
  return {seconds: first.currentTime, error: first.error && first.error.message};
}

function drawn() {
  const box = (element) => element.getBoundingClientRect();
  const map = box(document.getElementById("atlas"));
  const inside = ({left, right, top, bottom, width}) =>
    width > 2 && left >= map.left && right <= map.right && top >= map.top && bottom <= map.bottom;
  return {
    curves: all(".curve polyline").map((line) => line.getTotalLength()),
    points: all("#atlas circle").map((circle) => inside(box(circle))),
    bars: all(".bar span").map((bar) => box(bar).width / box(bar.parentElement).width),
    recalls: all(".bar + td").map((cell) => Number(cell.textContent) / 100),
    heat: all(".matrix tbody td").map((cell) =>
      [Number(cell.style.getPropertyValue("--share")), getComputedStyle(cell).backgroundColor]),
  };
}

// The colours of the points for each attribute, and those of the legend with their counts.
function colours() {
  const select = document.getElementById("attribute");
  return [...select.options].map((option) => {
    select.value = option.value;
    select.dispatchEvent(new Event("change"));
    const entries = all("#legend button").map((button) =>
      [getComputedStyle(button.firstChild).backgroundColor, Number(button.lastChild.textContent)]);
    const fills = all("#atlas circle").map((circle) => getComputedStyle(circle).fill);
    return {name: option.text, fills, legend: Object.fromEntries(entries)};
  });
}

function chosenAlone() {
  const button = document.querySelector("#legend button");
  const states = [0, 1].map(() => {
    button.click();
    return [button.getAttribute("aria-pressed"), all("#atlas circle.chosen").length];
  });
  return [...states, Number(button.lastChild.textContent)];
}

// Where on the screen a point lies that can be heard, and what is known of it.
function aim() {
  document.documentElement.style.scrollBehavior = "auto";
  document.getElementById("map").scrollIntoView();
  const number = Number(Object.keys(data.sounds)[0]);
  const {left, top, width, height} = all("#atlas circle")[number].getBoundingClientRect();
  return {place: {x: left + width / 2, y: top + height / 2}, told: data.keys[number] + data.tags[number]};
}

function heard() {
  return onMap.currentTime > 0.1 || event(onMap, "timeupdate", () => onMap.currentTime > 0.1);
}

// The contrast of every element that has text of its own, by WCAG 2.2.
function contrasts() {
  const brush = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
    return [...brush.getImageData(0, 0, 1, 1).data];
  };
  const linear = (part) => part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = (colour) => {
    const [red, green, blue] = rgba(colour).map(linear);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return rgba(colour)[3] === 255 ? colour : ground(element.parentElement);
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return all("body *").filter((element) => !element.closest("script, audio, select") && hasText(element)).map((element) => {
    const style = getComputedStyle(element);
    const pair = [luminance(element.closest("svg") ? style.fill : style.color), luminance(ground(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    return [ratio, element.tagName, element.className, element.textContent.slice(0, 40)];
  });
}

// What a script could do that got into the page: load an image, call, start another script.
async function escape(url) {
  const image = Object.assign(new Image(), {src: url});
  const loaded = Promise.race([event(image, "load").then(() => "loaded"), event(image, "error").then(() => "refused")]);
  const called = fetch(url).then(() => "loaded", () => "refused");
  const script = document.createElement("script");
  script.textContent = "window.hacked = 'by a script'";
  document.body.append(script);
  return [await loaded, await called, window.hacked ?? "untouched"];
}
