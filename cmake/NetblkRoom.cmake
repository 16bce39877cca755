# SPDX-License-Identifier: GPL-2.0-only
# A room is one folder of src/: one static library whose link list is its include list.
#
# Its headers are reached through an include folder of its own, made of links to exactly its headers. A source sees
# the headers of the rooms that its target links, and no others: a wrong include does not compile.

set(NETBLK_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor
                    -Woverloaded-virtual -Wcast-qual -Werror)

function(netblk_options target)
  target_compile_options(${target} PRIVATE ${NETBLK_WARNINGS} -fno-omit-frame-pointer)
  if(NETBLK_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${NETBLK_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${NETBLK_SANITIZE})
  endif()
  if(NETBLK_FUZZ)
    # clang 14: it takes some names for ones that hide others and would have newer coroutines, and what it puts in front of a
    # function for -fsanitize=function cannot be in front of a part of a coroutine.
    target_compile_options(${target} PRIVATE -Wno-shadow -Wno-deprecated-experimental-coroutine -fno-sanitize=function)
  endif()
endfunction()

# A test's many checks take long to optimise, and longer with the undefined-behaviour sanitizer, which is for what they
# check: a test's own source is compiled the fast way.
function(netblk_cheap_test target)
  if(NETBLK_SANITIZE MATCHES "undefined")
    target_compile_options(${target} PRIVATE -O0 -fno-sanitize=undefined)
  elseif(CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo")
    target_compile_options(${target} PRIVATE -O1)
  endif()
endfunction()

# Links the .h files of SOURCE_DIR (not of its subfolders) under INCLUDE_ROOT/PREFIX.
function(netblk_link_headers source_dir include_root prefix)
  file(GLOB headers CONFIGURE_DEPENDS ${source_dir}/*.h)
  file(REMOVE_RECURSE ${include_root})
  file(MAKE_DIRECTORY ${include_root}/${prefix})
  foreach(header ${headers})
    get_filename_component(name ${header} NAME)
    file(CREATE_LINK ${header} ${include_root}/${prefix}/${name} SYMBOLIC)
  endforeach()
endfunction()

# netblk_room(io/uring LINK netblk::io PRIVATE PkgConfig::LIBURING)
#   LINK: rooms and libraries whose headers its own headers use; PRIVATE: those that only its sources use.
# Sources are all .cc files of the folder; x_test.cc files become one test program, linked with TEST_LINK too.
function(netblk_room path)
  cmake_parse_arguments(ROOM "" "" "LINK;PRIVATE;TEST_LINK" ${ARGN})
  string(REPLACE "/" "_" name ${path})
  set(dir ${PROJECT_SOURCE_DIR}/src/${path})
  file(GLOB sources CONFIGURE_DEPENDS ${dir}/*.cc)
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$")
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  set(include_root ${PROJECT_BINARY_DIR}/include/${name})
  netblk_link_headers(${dir} ${include_root} ${path})
  if(sources)
    add_library(room_${name} STATIC ${sources})
    netblk_options(room_${name})
    target_include_directories(room_${name} PUBLIC ${include_root})
    target_link_libraries(room_${name} PUBLIC ${ROOM_LINK} PRIVATE ${ROOM_PRIVATE})
  else()
    add_library(room_${name} INTERFACE)
    target_include_directories(room_${name} INTERFACE ${include_root})
    target_link_libraries(room_${name} INTERFACE ${ROOM_LINK})
  endif()
  add_library(netblk::${name} ALIAS room_${name})
  if(NETBLK_TESTS AND tests)
    add_executable(${name}_test ${tests})
    netblk_options(${name}_test)
    netblk_cheap_test(${name}_test)
    target_link_libraries(${name}_test PRIVATE room_${name} ${ROOM_PRIVATE} ${ROOM_TEST_LINK}
                          GTest::gtest GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name}_test)
    add_dependencies(unit_tests ${name}_test)
  endif()
endfunction()
