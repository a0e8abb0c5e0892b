//! Makes `straightway.h` from the sources, and holds it against the committed one.
//!
//! A Rust item becomes C by its form: a structure with the one field `_opaque` is a handle's type, another one is a structure, an
//! alias of a number is an enumeration whose values are the constants of that type, an alias of an optional function is a callback,
//! and a function with the C calling convention is a function. What has no form known here stops the test.

use std::{fmt::Write, path::PathBuf};

use syn::{
    Attribute, Expr, Field, FnArg, GenericArgument, Item, ItemConst, ItemFn, ItemStruct, ItemType, Lit, Meta, Pat,
    PathArguments, ReturnType, Type,
};

/// The modules in the order of the header.
const MODULES: [&str; 10] = ["status", "last", "version", "text", "log", "engine", "object", "region", "io", "op"];
/// Columns of comments.
const WIDTH: usize = 120;

pub(crate) const PREAMBLE: &str = include_str!("preamble.h");
const END: &str = "\n#ifdef __cplusplus\n} /* extern \"C\" */\n#endif\n\n#endif /* STRAIGHTWAY_H */\n";

/// What the header has.
#[derive(Default)]
pub(crate) struct Api {
    pub(crate) text: String,
    /// Structures with their fields.
    pub(crate) structs: Vec<(String, Vec<String>)>,
    pub(crate) constants: Vec<String>,
    pub(crate) functions: Vec<String>,
    /// Prototypes without parameter names.
    pub(crate) prototypes: Vec<String>,
}

struct Module {
    attributes: Vec<Attribute>,
    items: Vec<Item>,
}

fn parsed(name: &str) -> Module {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/{name}.rs"));
    let text = std::fs::read_to_string(&path).unwrap();
    let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Module { attributes: file.attrs, items: file.items }
}

/// The whole header.
pub(crate) fn api() -> Api {
    let modules = MODULES.map(parsed);
    let mut api = Api { text: PREAMBLE.to_owned(), ..Api::default() };
    let all = || modules.iter().flat_map(|module| &module.items);
    for item in all() {
        if let Item::Struct(item) = item
            && is_public(&item.vis)
            && item.ident.to_string().starts_with("Sw")
        {
            let name = c_name(&item.ident.to_string());
            writeln!(api.text, "typedef struct {name} {name};").unwrap();
        }
    }
    for module in &modules {
        section(&mut api.text, &docs(&module.attributes));
        for item in &module.items {
            of_item(&mut api, item, &module.items);
        }
    }
    api.text += END;
    api
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

fn of_item(api: &mut Api, item: &Item, siblings: &[Item]) {
    match item {
        Item::Struct(item) if is_public(&item.vis) && item.ident.to_string().starts_with("Sw") => structure(api, item),
        Item::Type(item) if is_public(&item.vis) => alias(api, item, siblings),
        Item::Const(item) if is_public(&item.vis) && is_bare(&item.ty) => macro_constant(api, item),
        Item::Fn(item) if item.sig.abi.is_some() => function(api, item),
        _ => {}
    }
}

fn is_bare(ty: &Type) -> bool {
    ["u32", "u64"].contains(&last_segment(ty).0.as_str())
}

fn structure(api: &mut Api, item: &ItemStruct) {
    let name = c_name(&item.ident.to_string());
    let fields: Vec<&Field> = item.fields.iter().collect();
    if fields.len() == 1 && named(fields[0]) == "_opaque" {
        // Declared with the others; its text stands where its functions are.
        comment(&mut api.text, "", &format!("`{name}`: {}", docs(&item.attrs)));
        return;
    }
    comment(&mut api.text, "", &docs(&item.attrs));
    writeln!(api.text, "struct {name} {{").unwrap();
    for field in &fields {
        comment(&mut api.text, "    ", &docs(&field.attrs));
        writeln!(api.text, "    {};", declared(&c_type(&field.ty), &named(field))).unwrap();
    }
    api.text += "};\n";
    let names: Vec<String> = fields.iter().map(|field| named(field)).collect();
    if names[0] == "size" {
        let zeros = fields.iter().skip(1).map(|field| zero(&field.ty));
        let values: Vec<&str> = zeros.collect();
        let upper = name.to_uppercase();
        comment(&mut api.text, "", &format!("A `{name}` with its size, and all else zero."));
        writeln!(api.text, "#define {upper}_INIT {{ sizeof({name}), {} }}", values.join(", ")).unwrap();
    }
    api.structs.push((name, names));
}

fn zero(ty: &Type) -> &'static str {
    let c = c_type(ty);
    if c.ends_with('*') || c == "sw_callback" || c == "sw_release" { "NULL" } else { "0" }
}

fn alias(api: &mut Api, item: &ItemType, siblings: &[Item]) {
    let name = c_name(&item.ident.to_string());
    let (head, arguments) = last_segment(&item.ty);
    comment(&mut api.text, "", &docs(&item.attrs));
    if head == "Option" {
        let [Type::BareFn(function)] = arguments.as_slice() else { panic!("{name}: an option of something else") };
        let parameters = function.inputs.iter().map(|argument| {
            let (name, _) = argument.name.as_ref().expect("parameters of callbacks have names");
            declared(&c_type(&argument.ty), &name.to_string())
        });
        let parameters: Vec<String> = parameters.collect();
        writeln!(api.text, "typedef void (*{name})({});", parameters.join(", ")).unwrap();
        return;
    }
    writeln!(api.text, "typedef {} {name};\nenum {{", c_number(&head)).unwrap();
    for value in siblings.iter().filter_map(|sibling| match sibling {
        Item::Const(constant) if item.ident == last_segment(&constant.ty).0 => Some(constant),
        _ => None,
    }) {
        comment(&mut api.text, "    ", &docs(&value.attrs));
        writeln!(api.text, "    {} = {},", value.ident, literal(&value.expr)).unwrap();
        api.constants.push(value.ident.to_string());
    }
    let end = api.text.trim_end_matches(['\n', ',']).len();
    api.text.truncate(end);
    api.text += "\n};\n";
}

fn macro_constant(api: &mut Api, item: &ItemConst) {
    comment(&mut api.text, "", &docs(&item.attrs));
    let value = literal(&item.expr);
    writeln!(api.text, "#define {} {value}", item.ident).unwrap();
    api.constants.push(item.ident.to_string());
}

fn literal(expression: &Expr) -> String {
    match expression {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(number) => number.base10_digits().to_owned(),
            _ => panic!("a constant that is no number"),
        },
        Expr::Unary(unary) => format!("-{}", literal(&unary.expr)),
        Expr::Path(path) if path.path.segments.last().unwrap().ident == "MAX" => "UINT64_MAX".to_owned(),
        _ => panic!("a constant that is no literal"),
    }
}

fn function(api: &mut Api, item: &ItemFn) {
    let name = item.sig.ident.to_string();
    let parameters: Vec<(String, String)> = item
        .sig
        .inputs
        .iter()
        .map(|argument| {
            let FnArg::Typed(argument) = argument else { panic!("{name}: a method") };
            let Pat::Ident(pattern) = &*argument.pat else { panic!("{name}: a parameter without a name") };
            (c_type(&argument.ty), pattern.ident.to_string())
        })
        .collect();
    let answer = match &item.sig.output {
        ReturnType::Default => "void".to_owned(),
        ReturnType::Type(_, ty) => c_type(ty),
    };
    comment(&mut api.text, "", &docs(&item.attrs));
    let list: Vec<String> = parameters.iter().map(|(ty, name)| declared(ty, name)).collect();
    let head = format!("SW_API {}", declared(&answer, &name));
    let one_line = format!("{head}({});", list.join(", "));
    if one_line.len() <= WIDTH {
        writeln!(api.text, "{one_line}").unwrap();
    } else {
        writeln!(api.text, "{head}(\n    {});", list.join(",\n    ")).unwrap();
    }
    let types: Vec<&str> = parameters.iter().map(|(ty, _)| ty.as_str()).collect();
    api.prototypes.push(format!("{}({})", declared(&answer, &name), types.join(", ")));
    api.functions.push(name);
}

/// A type with the name of what has it.
fn declared(ty: &str, name: &str) -> String {
    if ty.ends_with('*') { format!("{ty}{name}") } else { format!("{ty} {name}") }
}

fn named(field: &Field) -> String {
    field.ident.as_ref().expect("fields have names").to_string()
}

/// The last word of a type, and the types in its angle brackets.
fn last_segment(ty: &Type) -> (String, Vec<Type>) {
    let Type::Path(path) = ty else { panic!("a type that is no name") };
    let segment = path.path.segments.last().unwrap();
    let arguments = match &segment.arguments {
        PathArguments::AngleBracketed(list) => list
            .args
            .iter()
            .map(|argument| match argument {
                GenericArgument::Type(ty) => ty.clone(),
                _ => panic!("an argument that is no type"),
            })
            .collect(),
        _ => Vec::new(),
    };
    (segment.ident.to_string(), arguments)
}

fn c_number(name: &str) -> &'static str {
    match name {
        "usize" => "size_t",
        "u64" => "uint64_t",
        "u32" => "uint32_t",
        "i32" => "int32_t",
        _ => panic!("{name} has no form in C"),
    }
}

fn c_type(ty: &Type) -> String {
    let (name, arguments) = last_segment(ty);
    let inner = || c_type(&arguments[0]);
    match name.as_str() {
        "Str" => "const char *".to_owned(),
        "Addr" => "void *".to_owned(),
        "ConstAddr" => "const void *".to_owned(),
        "Handle" => format!("{} *", inner()),
        "Out" => pointer_to(&inner()),
        "In" if inner().ends_with('*') => format!("{}const *", inner()),
        "In" => format!("const {} *", inner()),
        _ if name.starts_with("Sw") => c_name(&name),
        _ => c_number(&name).to_owned(),
    }
}

fn pointer_to(ty: &str) -> String {
    if ty.ends_with('*') { format!("{ty}*") } else { format!("{ty} *") }
}

/// `SwIoOptions` is `sw_io_options`.
fn c_name(name: &str) -> String {
    let mut c = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !c.is_empty() {
            c.push('_');
        }
        c.extend(letter.to_lowercase());
    }
    c
}

/// The text of documentation comments.
fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A heading and a text, as one comment.
fn section(text: &mut String, docs: &str) {
    let title = docs.lines().next().unwrap_or_default().trim_start_matches("# ");
    let rule = "-".repeat(WIDTH.saturating_sub(title.len() + 8));
    write!(text, "\n/* ---- {title} {rule} */\n").unwrap();
    let rest: Vec<&str> = docs.lines().skip(1).collect();
    if !rest.join("").is_empty() {
        comment(text, "", rest.join("\n").trim());
    }
}

/// A comment in paragraphs, filled to the width.
fn comment(text: &mut String, indent: &str, docs: &str) {
    assert!(!docs.is_empty(), "something without a text");
    assert!(!docs.contains("*/"));
    let paragraphs =
        docs.split("\n\n").map(|paragraph| filled(&paragraph.replace('\n', " "), WIDTH - indent.len() - 4));
    let lines: Vec<String> = paragraphs.collect::<Vec<_>>().join("").lines().map(str::to_owned).collect();
    let lines = if lines.last().is_some_and(String::is_empty) { &lines[..lines.len() - 1] } else { &lines[..] };
    if indent.is_empty() {
        text.push('\n');
    }
    match lines {
        [line] => writeln!(text, "{indent}/** {line} */").unwrap(),
        _ => {
            writeln!(text, "{indent}/**").unwrap();
            for line in lines {
                writeln!(text, "{}", format!("{indent} * {line}").trim_end()).unwrap();
            }
            writeln!(text, "{indent} */").unwrap();
        }
    }
}

/// Words in lines, and an empty line behind them.
fn filled(words: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in words.split_whitespace() {
        let line = lines.last_mut().unwrap();
        if line.is_empty() {
            *line = word.to_owned();
        } else if line.len() + 1 + word.len() <= width {
            write!(line, " {word}").unwrap();
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n") + "\n\n"
}

#[test]
fn the_header_is_what_the_sources_say() {
    let fresh = api().text;
    crate::same_or_written("include/straightway.h", &fresh);
}

#[test]
fn every_function_of_the_sources_is_in_the_header() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut exported = Vec::new();
    for entry in std::fs::read_dir(source).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let names = text.split("pub extern \"C\" fn ").skip(1).map(|rest| rest.split('(').next().unwrap().to_owned());
        exported.extend(names);
    }
    exported.sort();
    let mut told = api().functions;
    told.sort();
    assert_eq!(exported, told);
}
