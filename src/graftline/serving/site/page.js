"use strict";

const MOST_SHOWN = 8; // classes of an image
const AT_ONCE = 2; // requests
const PATIENCE = 20; // times that the server is asked again why, while it has others to answer
const COOL = [255, 196, 0]; // of the heat, which is the more opaque the warmer it is
const WARM = [226, 30, 50];
const find = (id) => document.getElementById(id);

function percent(share) {
  if (share > 0.9999) return "> 99.99 %";
  if (share < 0.0001) return "< 0.01 %";
  return `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 2 : 1)} %`;
}

const waiting = [];
let base = "";
let running = 0;
let asked = Promise.resolve();

function tell(text) {
  find("told").textContent = text;
  find("told").hidden = !text;
}

async function ask(address, options) {
  const answer = await fetch(address, options).catch(() => {
    throw new Error("The file cannot be read, or the server does not answer.");
  });
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.message), { status: answer.status });
  return content;
}

async function showModel() {
  const model = await ask(`${base}model`);
  const version = model.version === null ? "" : `version ${model.version}, `;
  const names = model.class_names;
  const listed = names.length > 6 ? `${names.slice(0, 6).join(", ")} …` : names.join(", ");
  document.title = model.model;
  find("name").textContent = model.model;
  find("facts").textContent = `${version}${names.length} classes: ${listed}`;
  find("digest").textContent = `bundle ${model.digest}`;
}

async function start() {
  const { models } = await ask("models");
  const select = find("models");
  for (const { model } of models) select.add(new Option(model));
  select.hidden = models.length < 2;
  select.addEventListener("change", () => {
    base = `models/${encodeURIComponent(select.value)}/`;
    showModel().catch((error) => tell(error.message));
  });
  await showModel();
}

function card(file) {
  const article = find("card").content.firstElementChild.cloneNode(true);
  const picture = article.querySelector("img.photo");
  picture.src = URL.createObjectURL(file);
  picture.addEventListener("load", () => URL.revokeObjectURL(picture.src));
  picture.addEventListener("error", () => {
    picture.removeAttribute("src");
    picture.alt = "no preview";
  });
  article.querySelector(".file").textContent = file.name;
  article.querySelector(".verdict strong").textContent = "waits …";
  article.classList.add("waits");
  find("answers").prepend(article);
  return article;
}

function fill(article, answer, milliseconds) {
  const [prediction] = answer.predictions;
  article.classList.remove("waits");
  article.querySelector(".verdict strong").textContent = prediction.class;
  article.querySelector(".percent").textContent = percent(prediction.probability);
  article.querySelector(".refused").hidden = prediction.refused !== true;
  const sorted = Object.entries(prediction.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [name, share] of sorted.slice(0, MOST_SHOWN)) {
    const line = document.createElement("li");
    const [label, number, bar] = ["span", "b", "div"].map((kind) => document.createElement(kind));
    label.textContent = name;
    number.textContent = percent(share);
    bar.className = "bar";
    bar.append(document.createElement("i"));
    line.classList.toggle("best", name === prediction.class);
    line.append(label, number, bar);
    article.querySelector("ol").append(line);
    requestAnimationFrame(() => (bar.firstChild.style.width = `${100 * share}%`));
  }
  const more = sorted.length - MOST_SHOWN;
  const version = answer.version === null ? answer.uri : `version ${answer.version}`;
  const rest = more > 0 ? `${more} more classes · ` : "";
  article.querySelector(".from").textContent = `${rest}${version} · ${Math.round(milliseconds)} ms`;
}

function paint(canvas, map) {
  const small = document.createElement("canvas");
  [small.width, small.height] = [map[0].length, map.length];
  const image = small.getContext("2d").createImageData(small.width, small.height);
  map.flat().forEach((warmth, place) => {
    COOL.forEach((level, color) => (image.data[4 * place + color] = level + warmth * (WARM[color] - level)));
    image.data[4 * place + 3] = 200 * warmth ** 1.4;
  });
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function explain(article, answer) {
  const why = article.querySelector(".why");
  const view = why.querySelector(".heat img");
  const canvas = why.querySelector("canvas");
  view.src = answer.view;
  view.alt = "what the network sees of the photo";
  view.decode().then(() => {
    [canvas.width, canvas.height] = [view.naturalWidth, view.naturalHeight];
    paint(canvas, answer.heat.map);
  });
  const { map, method } = answer.heat;
  const seen = map.flat().some((warmth) => warmth > 0);
  const told = seen ? `where “${answer.class}” shows (${method})` : `nothing speaks for “${answer.class}” (${method})`;
  why.querySelector("figcaption").textContent = told;
  why.querySelector(".near p").textContent = answer.neighbors ? "Nearest training images" : "";
  why.querySelector(".note").textContent = answer.note ?? "";
  for (const near of answer.neighbors ?? []) {
    const line = find("neighbor").content.firstElementChild.cloneNode(true);
    line.querySelector("img").src = near.image;
    line.querySelector("span").textContent = near.class;
    line.title = `distance ${near.distance.toFixed(2)} of 2`;
    line.classList.toggle("other", near.class !== answer.class);
    why.querySelector("ul").append(line);
  }
  why.hidden = false;
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function askWhy({ file, article, address }) {
  const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
  for (let turn = 0; turn < PATIENCE; turn += 1) {
    try {
      return explain(article, await ask(`${address}explain`, options));
    } catch (error) {
      if (error.status === 503) {
        await pause(1);
        continue;
      }
      article.querySelector(".from").textContent += ` · ${error.message}`;
      return;
    }
  }
}

async function classify(one) {
  const { file, article, address } = one;
  const begun = performance.now();
  try {
    const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
    fill(article, await ask(`${address}predict`, options), performance.now() - begun);
    asked = asked.then(() => askWhy(one)); // one after the other, behind the answers
  } catch (error) {
    article.querySelector(".verdict").hidden = true;
    const told = article.querySelector(".refused");
    told.textContent = error.message.replace(/^image 0: /, "");
    told.hidden = false;
  }
}

async function work() {
  if (running >= AT_ONCE || !waiting.length) return;
  running += 1;
  await classify(waiting.shift());
  running -= 1;
  work();
}

function take(files) {
  tell("");
  for (const file of files) {
    waiting.push({ file, article: card(file), address: base });
    work();
  }
}

const drop = find("drop");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
drop.addEventListener("keydown", (event) => {
  if (event.target === drop && (event.key === "Enter" || event.key === " ")) find("files").click();
});
find("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
start().catch((error) => tell(error.message));
