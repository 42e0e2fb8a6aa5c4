//! Runs scripts as Redis does: the same files, in Lua 5.1, atomic on one data set.

use crate::store::{Bytes, Reply, Store, bytes};
use mlua::{Error, Function, Lua, MultiValue, Table, Value, Variadic};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

thread_local! {
    /// The data set of the running script.
    static RUNNING: RefCell<Option<Store>> = const { RefCell::new(None) };
    /// The error of the last failed `redis.call`, which the script raises.
    static RAISED: Cell<Option<String>> = const { Cell::new(None) };
    static SCRIPTS: Scripts = Scripts::new();
}

struct Scripts {
    lua: Lua,
    compiled: RefCell<HashMap<String, Function>>,
}

/// The name of a script: the hash of its body.
pub(crate) fn hash_of(body: &[u8]) -> String {
    use aws_lc_rs::digest;
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, body);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compiles a script. Returns its name.
///
/// # Errors
/// If it does not compile.
pub(crate) fn load(body: &[u8]) -> Result<String, String> {
    let name = hash_of(body);
    SCRIPTS.with(|scripts| {
        if !scripts.compiled.borrow().contains_key(&name) {
            let function = scripts.lua.load(body).set_name("@user_script").into_function();
            let function = function.map_err(|error| format!("ERR Error compiling script: {error}"))?;
            scripts.compiled.borrow_mut().insert(name.clone(), function);
        }
        Ok(name)
    })
}

/// Runs a loaded script.
pub(crate) fn run(store: &mut Store, name: &str, keys: &[Bytes], args: &[Bytes]) -> Reply {
    SCRIPTS.with(|scripts| {
        let Some(function) = scripts.compiled.borrow().get(name).cloned() else {
            return Reply::Error("NOSCRIPT No matching script. Please use EVAL.".to_owned());
        };
        let facts = store.facts.clone();
        let idle = Store::new(facts, fastrand::Rng::with_seed(0));
        RUNNING.set(Some(std::mem::replace(store, idle)));
        RAISED.set(None);
        let result = scripts.call(&function, keys, args);
        if let Some(back) = RUNNING.take() {
            *store = back;
        }
        result.unwrap_or_else(|error| {
            let raised = RAISED.take();
            Reply::Error(raised.unwrap_or_else(|| format!("ERR {}", error.to_string().replace(['\r', '\n'], " "))))
        })
    })
}

impl Scripts {
    #[expect(clippy::expect_used, reason = "without its library the interpreter is unusable")]
    fn new() -> Self {
        let lua = Lua::new();
        let prepare = || -> mlua::Result<()> {
            let redis = lua.create_table()?;
            redis.set("call", lua.create_function(|lua, args: Variadic<Value>| call(lua, &args, true))?)?;
            redis.set("pcall", lua.create_function(|lua, args: Variadic<Value>| call(lua, &args, false))?)?;
            redis.set("error_reply", lua.create_function(|lua, text: mlua::LuaString| named(lua, "err", &text))?)?;
            redis.set("status_reply", lua.create_function(|lua, text: mlua::LuaString| named(lua, "ok", &text))?)?;
            redis.set("sha1hex", lua.create_function(|_, text: mlua::LuaString| Ok(hash_of(&text.as_bytes())))?)?;
            redis.set("log", lua.create_function(|_, _: MultiValue| Ok(()))?)?;
            lua.globals().set("redis", redis)
        };
        prepare().expect("failed to start Lua");
        Self { lua, compiled: RefCell::default() }
    }

    fn call(&self, function: &Function, keys: &[Bytes], args: &[Bytes]) -> mlua::Result<Reply> {
        let list = |items: &[Bytes]| -> mlua::Result<Table> {
            let table = self.lua.create_table_with_capacity(items.len(), 0)?;
            for (i, item) in items.iter().enumerate() {
                table.raw_set(i + 1, self.lua.create_string(item)?)?;
            }
            Ok(table)
        };
        let globals = self.lua.globals();
        globals.raw_set("KEYS", list(keys)?)?;
        globals.raw_set("ARGV", list(args)?)?;
        to_reply(&function.call::<Value>(())?)
    }
}

fn named(lua: &Lua, name: &str, text: &mlua::LuaString) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.set(name, text)?;
    Ok(table)
}

fn call(lua: &Lua, args: &[Value], raise: bool) -> mlua::Result<Value> {
    let args = args.iter().map(argument).collect::<mlua::Result<Vec<Bytes>>>()?;
    let reply = RUNNING.with_borrow_mut(|running| match running {
        Some(store) => store.call(&args),
        None => Reply::Error("ERR no script is running".to_owned()),
    });
    match reply {
        Reply::Error(text) if raise => {
            RAISED.set(Some(text.clone()));
            Err(Error::RuntimeError(text))
        }
        reply => to_lua(lua, &reply),
    }
}

/// Converts a script value to a command argument: a string, or a number in Redis' format.
fn argument(value: &Value) -> mlua::Result<Bytes> {
    match value {
        Value::String(text) => Ok(text.as_bytes().as_ref().into()),
        Value::Integer(n) => Ok(bytes(&n.to_string())),
        Value::Number(n) if n.fract() == 0.0 && n.abs() < 9.0e18 => Ok(bytes(&format!("{n:.0}"))),
        Value::Number(n) => Ok(bytes(&n.to_string())),
        other => Err(Error::RuntimeError(format!(
            "ERR Lua redis lib command arguments must be strings or integers, not {}",
            other.type_name()
        ))),
    }
}

fn to_lua(lua: &Lua, reply: &Reply) -> mlua::Result<Value> {
    Ok(match reply {
        Reply::Nil | Reply::NilArray => Value::Boolean(false),
        #[expect(clippy::cast_precision_loss, reason = "as in Redis, whose scripts have no other number type")]
        Reply::Int(n) => Value::Number(*n as f64),
        Reply::Status(text) => Value::Table(named(lua, "ok", &lua.create_string(text)?)?),
        Reply::Error(text) => Value::Table(named(lua, "err", &lua.create_string(text)?)?),
        Reply::Bulk(bytes) => Value::String(lua.create_string(bytes)?),
        Reply::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (i, item) in items.iter().enumerate() {
                table.raw_set(i + 1, to_lua(lua, item)?)?;
            }
            Value::Table(table)
        }
    })
}

fn to_reply(value: &Value) -> mlua::Result<Reply> {
    Ok(match value {
        Value::Boolean(true) => Reply::Int(1),
        Value::Integer(n) => Reply::Int(*n),
        #[expect(clippy::cast_possible_truncation, reason = "as in Redis")]
        Value::Number(n) => Reply::Int(*n as i64),
        Value::String(text) => Reply::Bulk(text.as_bytes().as_ref().into()),
        Value::Table(table) => {
            if let Some(text) = table.raw_get::<Option<mlua::LuaString>>("err")? {
                return Ok(Reply::Error(text.to_string_lossy()));
            }
            if table.raw_get::<Option<mlua::LuaString>>("ok")?.is_some() {
                return Ok(Reply::Status("OK"));
            }
            let mut items = Vec::new();
            for i in 1.. {
                match table.raw_get::<Value>(i)? {
                    Value::Nil => break,
                    item => items.push(to_reply(&item)?),
                }
            }
            Reply::Array(items)
        }
        _ => Reply::Nil,
    })
}
